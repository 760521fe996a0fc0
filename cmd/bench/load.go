//go:build !recoverchild

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// A load is what a number of connections got done.
type load struct {
	requests  int
	perSecond float64
	p50, p99  time.Duration
}

// generate sends request over the given number of kept-alive connections to
// an address on loopback, for d, and checks each answer's status. It does as
// little as it can, because it shares the machine with what it measures.
func generate(ctx context.Context, address string, request func(i int) []byte, status int, connections int, d time.Duration) (load, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil || !net.ParseIP(host).IsLoopback() {
		return load{}, fmt.Errorf("%s is not on loopback", address)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var times []time.Duration
	var failure error
	end := time.Now().Add(d)
	start := time.Now()
	for c := range connections {
		wg.Go(func() { // ends with the time, the context, or an error; waited for below
			own, err := converse(ctx, address, func(i int) []byte { return request(c + i*connections) }, status, end)
			mu.Lock()
			defer mu.Unlock()
			times = append(times, own...)
			if err != nil && failure == nil {
				failure = err
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if failure != nil {
		return load{}, failure
	}
	if len(times) == 0 {
		return load{}, fmt.Errorf("no request to %s was answered", address)
	}
	slices.Sort(times)
	return load{len(times), float64(len(times)) / took.Seconds(), times[len(times)/2], times[len(times)*99/100]}, nil
}

// converse sends requests one after the other over one connection.
func converse(ctx context.Context, address string, request func(i int) []byte, status int, end time.Time) ([]time.Duration, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 64<<10)
	var times []time.Duration
	for i := 0; ctx.Err() == nil; i++ {
		doc := request(i)
		if doc == nil || !time.Now().Before(end) {
			return times, nil
		}
		start := time.Now()
		if _, err := conn.Write(doc); err != nil {
			return times, err
		}
		got, err := readAnswer(r)
		if err != nil {
			return times, err
		}
		if got != status {
			return times, fmt.Errorf("%s answered with status %d, not %d", address, got, status)
		}
		times = append(times, time.Since(start))
	}
	return times, ctx.Err()
}

// readAnswer reads one response with a Content-Length.
func readAnswer(r *bufio.Reader) (status int, err error) {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case first:
			if len(line) < 12 {
				return 0, fmt.Errorf("malformed status line %q", line)
			}
			if status, err = strconv.Atoi(string(line[9:12])); err != nil {
				return 0, err
			}
		case len(line) == 0:
			if length < 0 {
				return 0, fmt.Errorf("an answer has no Content-Length")
			}
			_, err := io.CopyN(io.Discard, r, int64(length))
			return status, err
		case len(line) > 16 && bytes.EqualFold(line[:16], []byte("Content-Length: ")):
			if length, err = strconv.Atoi(string(line[16:])); err != nil {
				return 0, err
			}
		}
	}
}
