package caddymodule

import (
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// resolve replaces the placeholders of a setting, such as {env.PAY_TO}. One
// that is empty or not known is an error: money must not go to a blank.
func resolve(what, s string) (string, error) {
	if !strings.Contains(s, "{") {
		return s, nil
	}
	out, err := caddy.NewReplacer().ReplaceOrErr(s, true, true)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return strings.TrimSpace(out), nil
}

// secret resolves a setting that must be one placeholder and nothing else.
// The error never repeats what was given.
func secret(what, s, example string) (string, error) {
	if err := checkSecret(what, s, example); err != nil {
		return "", err
	}
	return resolve(what, s)
}

// checkSecret refuses a secret that is written into the configuration, where
// it could be read in the admin API, in the autosaved configuration and in
// backups.
func checkSecret(what, s, example string) error {
	inner, begins := strings.CutPrefix(s, "{")
	inner, ends := strings.CutSuffix(inner, "}")
	if begins && ends && inner != "" && !strings.ContainsAny(inner, "{}\\") {
		return nil
	}
	return fmt.Errorf("%s must not be written into the configuration: write {env.%s} or {file./run/secrets/%s}; {$%s} does not help, it is replaced while the Caddyfile is read",
		what, example, strings.ToLower(example), example)
}

// minSecret is how long a secret must be that keys are made of.
const minSecret = 32

// longSecret resolves the setting of a secret that keys are made of, or
// returns "" where there is none.
func longSecret(what, setting, example string) (string, error) {
	if setting == "" {
		return "", nil
	}
	s, err := secret(what, setting, example)
	if err != nil {
		return "", err
	}
	if len(s) < minSecret {
		return "", fmt.Errorf("%s has %d characters, and needs %d: make one with \"openssl rand -hex 32\"", what, len(s), minSecret)
	}
	return s, nil
}
