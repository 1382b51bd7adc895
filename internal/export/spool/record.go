package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/bits"
)

// A segment is a row of records, and nothing else. A record is a header and a
// body:
//
//	 0  magic     4 bytes
//	 4  state     1 byte, the only one that is ever written again
//	 5  flags     1 byte, of the caller
//	 6  zero      2 bytes
//	 8  size      4 bytes, of the body
//	12  items     4 bytes
//	16  number    8 bytes, of items that were put into the queue before
//	24  time      8 bytes, Unix ns
//	32  body sum  4 bytes, CRC32C of the body
//	36  sum       4 bytes, CRC32C of the header without state and sum
//
// all little-endian. The header's sum starts from the segment's salt, which is
// random: a body that happens to hold, or was made to hold, something that looks
// like a record is not taken for one when the reader searches for the next good
// header behind a damaged one.
const (
	headerSize = 40
	stateAt    = 4
	sumAt      = 36
)

// Bounds of what a header may say.
const (
	// MaxBody is the size of the largest body.
	MaxBody   = 32 << 20
	maxItems  = 1 << 24
	maxNumber = 1 << 62
)

var magic = []byte("PSP1")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// state is how far a record has come. The codes differ in four bits or more, so
// that a flipped bit does not turn one into another.
type state byte

const (
	waiting  state = 0x0f // never sent, or refused for sure
	doubtful state = 0x33 // sent, and whether it arrived is not known
	done     state = 0xf0
)

// stateOf reads a state byte; what is too damaged to tell is doubtful.
func stateOf(b byte) state {
	for _, s := range []state{waiting, done} {
		if bits.OnesCount8(b^byte(s)) <= 1 {
			return s
		}
	}
	return doubtful
}

type header struct {
	state   state
	flags   byte
	size    uint32
	items   uint32
	number  uint64
	time    int64
	bodySum uint32
}

// length is how far it is to the next record.
func (h *header) length() int64 { return headerSize + int64(h.size) }

// end is the number of the record that follows.
func (h *header) end() uint64 { return h.number + uint64(h.items) }

func (h *header) encode(salt uint32) []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	b[stateAt], b[5] = byte(h.state), h.flags
	le := binary.LittleEndian
	le.PutUint32(b[8:], h.size)
	le.PutUint32(b[12:], h.items)
	le.PutUint64(b[16:], h.number)
	le.PutUint64(b[24:], uint64(h.time))
	le.PutUint32(b[32:], h.bodySum)
	le.PutUint32(b[sumAt:], headerSum(b, salt))
	return b
}

func headerSum(b []byte, salt uint32) uint32 {
	sum := crc32.Update(salt, castagnoli, b[:stateAt])
	return crc32.Update(sum, castagnoli, b[stateAt+1:sumAt])
}

// parseHeader reads the header at the start of b.
func parseHeader(b []byte, salt uint32) (h header, ok bool) {
	le := binary.LittleEndian
	if len(b) < headerSize || !bytes.Equal(b[:len(magic)], magic) || le.Uint32(b[sumAt:]) != headerSum(b, salt) {
		return h, false
	}
	h = header{
		state: stateOf(b[stateAt]), flags: b[5],
		size: le.Uint32(b[8:]), items: le.Uint32(b[12:]),
		number: le.Uint64(b[16:]), time: int64(le.Uint64(b[24:])), bodySum: le.Uint32(b[32:]),
	}
	return h, h.size <= MaxBody && h.items > 0 && h.items <= maxItems && h.number < maxNumber
}

// find returns the first good header at or after off of a segment with so many
// bytes, and where it is; io.EOF if there is none. A record that the segment
// breaks off in is not good.
func find(r io.ReaderAt, off, size int64, salt uint32) (header, int64, error) {
	var first [headerSize]byte
	if err := readFull(r, first[:], off, size); err != nil {
		return header{}, size, err
	}
	if h, ok := parseHeader(first[:], salt); ok && off+h.length() <= size {
		return h, off, nil
	}
	return search(r, off+1, size, salt)
}

// search looks for a good header anywhere after off.
func search(r io.ReaderAt, off, size int64, salt uint32) (header, int64, error) {
	buf := make([]byte, min(64<<10, max(size-off, 0)))
	for off+headerSize <= size {
		chunk := buf[:min(int64(len(buf)), size-off)]
		if err := readFull(r, chunk, off, size); err != nil {
			return header{}, size, err
		}
		for i := 0; ; i++ {
			next := bytes.Index(chunk[i:], magic)
			if next < 0 || i+next+headerSize > len(chunk) {
				break
			}
			i += next
			if h, ok := parseHeader(chunk[i:], salt); ok && off+int64(i)+h.length() <= size {
				return h, off + int64(i), nil
			}
		}
		// The last bytes may be the start of a header.
		off += int64(len(chunk)) - headerSize + 1
	}
	return header{}, size, io.EOF
}

// readFull reads all of b, which must lie within size.
func readFull(r io.ReaderAt, b []byte, off, size int64) error {
	if off < 0 || off+int64(len(b)) > size {
		return io.EOF
	}
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.EOF // the file is shorter than it was
	}
	return err
}

// window answers small reads that follow one another from one larger read.
type window struct {
	io.ReaderAt
	buf []byte
	off int64
	n   int
}

// ReadAt implements [io.ReaderAt].
func (w *window) ReadAt(b []byte, off int64) (int, error) {
	if len(b) > headerSize {
		return w.ReaderAt.ReadAt(b, off)
	}
	if off < w.off || off+int64(len(b)) > w.off+int64(w.n) {
		n, err := w.ReaderAt.ReadAt(w.buf, off)
		w.off, w.n = off, n
		if n < len(b) {
			return copy(b, w.buf[:n]), err
		}
	}
	return copy(b, w.buf[off-w.off:w.n]), nil
}
