package caddymodule

import "github.com/tollgate402/tollgate/internal/linkhttp"

// A linkDesk is where payment links are made and looked after.
type linkDesk interface {
	merchant() *linkhttp.Merchant
}

// linkDesk returns the desk of the running configuration, or nil where it
// serves no links.
func (a *App) linkDesk() linkDesk { return nil }
