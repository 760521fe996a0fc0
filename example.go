// Package tollgate holds the example configuration, which is documentation
// and runs as it is on the sandbox.
package tollgate

import _ "embed"

// Caddyfile is Caddyfile.example.
//
//go:embed Caddyfile.example
var Caddyfile []byte
