-- Keys are bytes, not text, so that no collation orders them.
CREATE TABLE IF NOT EXISTS {schema}.entries (
	key     BYTEA PRIMARY KEY,
	version BIGINT NOT NULL,
	value   BYTEA NOT NULL
);

-- What each open store committed last, by which it finds out whether a commit
-- was made whose answer was lost.
CREATE TABLE IF NOT EXISTS {schema}.writers (
	id    BYTEA PRIMARY KEY,
	batch BIGINT NOT NULL,
	seen  TIMESTAMPTZ NOT NULL
);
