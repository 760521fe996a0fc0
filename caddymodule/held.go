package caddymodule

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"

	"github.com/tollgate402/tollgate/facilitator/till"
)

// HeldAnswers bounds what the upstreams' answers take that wait for the money,
// all of this process together. While there is no room, requests are answered
// with 503 before their payment is touched.
type HeldAnswers struct {
	// How many bytes they may take in memory. Each one takes 128 KiB.
	// Default: 512 MiB.
	Memory int64 `json:"memory,omitempty"`

	// How many bytes of them may lie on disk. Default: 1 GiB.
	Disk int64 `json:"disk,omitempty"`

	// The directory where they lie, without a name and encrypted. Default:
	// that for temporary files.
	Dir string `json:"dir,omitempty"`
}

// parse reads
//
//	held {
//		memory <size>
//		disk   <size>
//		dir    <path>
//	}
func (h *HeldAnswers) parse(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "memory":
			err = budget(d, &h.Memory)
		case "disk":
			err = budget(d, &h.Disk)
		case "dir":
			err = text(d, &h.Dir)
		default:
			err = unknown(d, "held", "memory", "disk", "dir")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// budget reads a size that is shared by many.
func budget(d *caddyfile.Dispenser, to *int64) error {
	var s string
	if *to != 0 {
		return d.Errf("%s is given twice", d.Val())
	}
	if err := text(d, &s); err != nil {
		return err
	}
	n, err := humanize.ParseBytes(s)
	if err != nil || n < 1<<20 || n > 1<<50 {
		return d.Errf("%q is no size from 1 MiB to 1 PiB: write it like 256MiB or 4GiB", s)
	}
	*to = int64(n)
	return nil
}

// rooms has the one budget of held answers in this process, which outlives
// the configurations that use it: during a reload two of them share it.
var rooms = caddy.NewUsagePool()

// A room is a budget in use.
type room struct{ till.Budget }

// Destruct implements caddy.Destructor.
func (*room) Destruct() error { return nil }

// useRoom returns the process's budget, with the limits of the configuration
// that starts. giveBack must be called once.
func useRoom(h *HeldAnswers) (_ *till.Budget, giveBack func() error, err error) {
	v, _, err := rooms.LoadOrNew("held", func() (caddy.Destructor, error) { return &room{}, nil })
	if err != nil {
		return nil, nil, err
	}
	r := v.(*room)
	r.Limit(till.Limits{Memory: h.Memory, Disk: h.Disk, Dir: h.Dir})
	return &r.Budget, func() error {
		_, err := rooms.Delete("held")
		return err
	}, nil
}
