package badger

import (
	"bytes"
	"testing"
)

func TestValuesComeBackWithTheirVersion(t *testing.T) {
	for _, value := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte{0}, 100)} {
		for _, version := range []uint64{1, 255, 256, 1<<64 - 2} {
			v, got, err := decodeValue(encodeValue(version, value))
			if err != nil || v != version || got == nil || !bytes.Equal(got, value) {
				t.Errorf("%q at %d came back as %q at %d, %v", value, version, got, v, err)
			}
		}
	}
}

func FuzzDecodeValueTakesOnlyWhatEncodeValueMakes(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add(encodeValue(1, nil))
	f.Add(encodeValue(1<<63, []byte("value")))
	f.Fuzz(func(t *testing.T, stored []byte) {
		version, value, err := decodeValue(stored)
		if err != nil {
			return
		}
		if version == 0 || value == nil {
			t.Fatalf("%x was decoded to version %d and %v", stored, version, value)
		}
		if again := encodeValue(version, value); !bytes.Equal(again, stored) {
			t.Fatalf("%x was decoded to %q at %d, which is encoded as %x", stored, value, version, again)
		}
	})
}
