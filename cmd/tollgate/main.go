// Command tollgate is Caddy with Tollgate's modules: a paywall for any HTTP
// API and a facilitator that settles its payments. Its commands are Caddy's.
package main

import (
	_ "time/tzdata" // log times in named zones, on systems without zone files

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/tollgate402/tollgate/caddymodule"
)

func main() {
	caddycmd.Main()
}
