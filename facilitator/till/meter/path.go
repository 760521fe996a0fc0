package meter

import (
	"errors"
	"fmt"
	"strings"
)

// A Path leads to one value in JSON: the names of members, and for arrays the
// places of elements, counted from 0.
type Path []string

const (
	maxSteps = 16 // of a path
	maxStep  = 64 // bytes of one step
)

// ParsePath reads a path whose steps are joined by dots, such as
// "usage.total_tokens" or "data.0.count". Names with dots in them cannot be
// written.
func ParsePath(s string) (Path, error) {
	p := Path(strings.Split(s, "."))
	if len(p) > maxSteps {
		return nil, fmt.Errorf("it has %d steps, the most is %d", len(p), maxSteps)
	}
	for _, step := range p {
		if step == "" {
			return nil, errors.New("a step is empty: write it like usage.total_tokens or data.0.count")
		}
		if len(step) > maxStep {
			return nil, fmt.Errorf("a step is longer than %d bytes", maxStep)
		}
	}
	return p, nil
}

func (p Path) String() string { return strings.Join(p, ".") }
