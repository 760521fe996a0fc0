package badger

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// A stored value begins with a header: the format of the value, one byte, and
// its version, eight bytes, most significant first. The value follows as it is.
const (
	valueFormat = 1
	headerSize  = 1 + 8
)

// encodeValue returns what is stored for value at version, which is not 0.
func encodeValue(version uint64, value []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(value))
	b[0] = valueFormat
	binary.BigEndian.PutUint64(b[1:], version)
	return append(b, value...)
}

// decodeValue is the inverse of encodeValue. The value it returns is a copy.
func decodeValue(stored []byte) (version uint64, value []byte, err error) {
	if len(stored) < headerSize {
		return 0, nil, fmt.Errorf("a value of %d bytes is too short to be one of ours", len(stored))
	}
	if stored[0] != valueFormat {
		return 0, nil, fmt.Errorf("the value has format %d, this program knows %d", stored[0], valueFormat)
	}
	version = binary.BigEndian.Uint64(stored[1:headerSize])
	if version == 0 {
		return 0, nil, fmt.Errorf("the value has version 0")
	}
	return version, bytes.Clone(stored[headerSize:]), nil
}
