package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/klauspost/compress/gzip"

	"github.com/plainframework/agent/internal/config"
)

// receipt is what became of one parcel. The worker that sends the parcel makes
// it, it travels in the context of the request, and the transport fills it in.
type receipt struct {
	signal signal
	items  int
	spill  bool // it is to go to the spool, not to the endpoint
	sent   bool // the transport has decided about the items
	outcome
}

// outcome is what became of a packet: what is neither lost nor spooled has
// arrived.
type outcome struct {
	lost    losses
	spooled int64
}

func (o *outcome) add(other outcome) {
	o.spooled += other.spooled
	for r, n := range other.lost {
		o.lost[r] += n
	}
}

type receiptKey struct{}

func receiptFrom(ctx context.Context) *receipt {
	r, _ := ctx.Value(receiptKey{}).(*receipt)
	return r
}

// failed books an error that an exporter returned: what the transport has not
// seen never became a request.
func (r *receipt) failed(error) {
	if !r.sent {
		r.lost = lose(lostEncode, r.items)
	}
}

// packet is a request that is ready to be sent, now or later: it needs nothing
// of the memory that it was made from. What cannot be delivered now goes to the
// spool as it is, without headers: the token is added each time it is sent.
type packet struct {
	signal signal
	url    string
	items  int
	gzip   bool
	body   []byte

	spill  bool // to the spool at once
	stored bool // it comes from there
	doubt  bool // an attempt was made that may have arrived
}

// transport is where the requests of all three signals come through. For the
// exporters above it is an http.RoundTripper; it makes a packet of the request,
// has it delivered, and answers for the endpoint: with 200 in any case, because
// all there is to decide has been decided, and is in the receipt.
type transport struct {
	gzip    bool
	urls    [signalCount]string
	deliver *deliverer
	pool    sync.Pool // *compressor
}

// compressor is the memory that compressing a request takes. At best speed it
// is 1.2 MB, so it is pooled, and one is in use only while a body is squeezed,
// not while it is sent.
type compressor struct {
	buf bytes.Buffer
	gz  *gzip.Writer
}

func newTransport(e config.Export, urls [signalCount]string, d *deliverer) *transport {
	t := &transport{gzip: e.Compression == "gzip", urls: urls, deliver: d}
	t.pool.New = func() any {
		gz, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is valid
		return &compressor{gz: gz}
	}
	return t
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	r := receiptFrom(req.Context())
	if r == nil || req.Body == nil {
		return nil, errors.New("not a request of the pipeline")
	}
	defer req.Body.Close()
	body, err := t.squeeze(req.Body)
	if err != nil {
		return nil, fmt.Errorf("compress request: %w", err)
	}
	r.sent = true
	// The URL and all headers are our own: what an exporter has put there may
	// come from variables that it reads itself.
	r.outcome = t.deliver.deliver(req.Context(), packet{
		signal: r.signal, url: t.urls[r.signal], items: r.items, gzip: t.gzip, body: body, spill: r.spill,
	})
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: http.NoBody, Request: req,
	}, nil
}

// squeeze reads the body into memory of its own, compressed.
func (t *transport) squeeze(body io.Reader) ([]byte, error) {
	if !t.gzip {
		return io.ReadAll(body)
	}
	c := t.pool.Get().(*compressor)
	defer t.pool.Put(c)
	c.buf.Reset()
	c.gz.Reset(&c.buf)
	if _, err := io.Copy(c.gz, body); err != nil {
		return nil, err
	}
	if err := c.gz.Close(); err != nil {
		return nil, err
	}
	return bytes.Clone(c.buf.Bytes()), nil
}
