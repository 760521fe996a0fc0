package linkpage

import (
	"fmt"
	"strconv"
	"strings"

	"rsc.io/qr"
)

// A code is a QR code as the path of an SVG image, one unit to a module.
type code struct {
	Box  string // the image's viewBox, with the quiet zone of four modules
	Path string
}

// codeOf returns the QR code of a text. A row's modules that touch are one
// rectangle, which keeps the path short and free of hairlines.
func codeOf(text string) (code, error) {
	c, err := qr.Encode(text, qr.M)
	if err != nil {
		return code{}, fmt.Errorf("drawing the QR code: %w", err)
	}
	var p strings.Builder
	for y := range c.Size {
		for x := 0; x < c.Size; x++ {
			start := x
			for c.Black(x, y) {
				x++
			}
			if x > start {
				fmt.Fprintf(&p, "M%d %dh%dv1h-%dz", start, y, x-start, x-start)
			}
		}
	}
	size := strconv.Itoa(c.Size + 8)
	return code{"-4 -4 " + size + " " + size, p.String()}, nil
}
