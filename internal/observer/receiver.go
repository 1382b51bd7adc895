package observer

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	collogspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Bounds of one request. A full batch of the agent is far below both.
const (
	maxWire = 16 << 20 // bytes as sent
	maxBody = 32 << 20 // bytes after decompression
)

var (
	errTooLarge    = errors.New("body too large")
	errCompression = errors.New("content encoding is neither gzip nor identity")
)

// Handler serves the three OTLP paths, /v1/traces, /v1/metrics and /v1/logs,
// in binary protobuf. Timeouts are the http.Server's.
func (o *Observer) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/traces", o.signal(takeSpans))
	mux.Handle("POST /v1/metrics", o.signal(takePoints))
	mux.Handle("POST /v1/logs", o.signal(takeLogs))
	return mux
}

// take decodes a body, leaves out the last reject items, and gives the answer
// that OTLP prescribes.
type take func(body []byte, reject int) (Batch, proto.Message, error)

func (o *Observer) signal(decode take) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fault := o.nextFault(r.URL.Path)
		seen := Request{Path: r.URL.Path, Encoding: r.Header.Get("Content-Encoding"), Auth: r.Header.Get("Authorization"), Received: time.Now()}
		body, wire, err := readBody(w, r)
		seen.Wire = wire
		if err != nil {
			o.refuse(w, seen, statusOf(err), err)
			return
		}
		if fault.delay(r.Context()) != nil || (fault.Reset && !fault.Accept) {
			o.hangUp(seen)
		}
		if fault.Status != 0 && !fault.Accept {
			fault.header(w.Header())
			o.refuse(w, seen, fault.Status, errors.New("told to fail"))
			return
		}
		batch, answer, err := decode(body, fault.Reject)
		if err != nil {
			o.refuse(w, seen, http.StatusBadRequest, fmt.Errorf("decode: %w", err))
			return
		}
		seen.Items = len(batch.Spans) + len(batch.Logs) + len(batch.Points)
		o.add(batch)
		if fault.Reset {
			o.hangUp(seen)
		}
		if fault.Status != 0 {
			fault.header(w.Header())
			o.refuse(w, seen, fault.Status, errors.New("told to fail"))
			return
		}
		o.answer(w, seen, answer)
	})
}

// hangUp closes the connection without an answer.
func (o *Observer) hangUp(seen Request) {
	o.record(seen)
	panic(http.ErrAbortHandler)
}

func (o *Observer) refuse(w http.ResponseWriter, seen Request, status int, err error) {
	seen.Status = status
	o.record(seen)
	http.Error(w, err.Error(), status)
}

func (o *Observer) answer(w http.ResponseWriter, seen Request, msg proto.Message) {
	out, err := proto.Marshal(msg)
	if err != nil {
		o.refuse(w, seen, http.StatusInternalServerError, fmt.Errorf("marshal answer: %w", err))
		return
	}
	seen.Status = http.StatusOK
	o.record(seen)
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(out) // a client that is gone needs no answer
}

func (o *Observer) record(seen Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests = appendLast(o.requests, []Request{seen}, o.keep)
	o.counts.Requests++
	o.wake()
}

// readBody reads and decompresses within the bounds, and tells how many bytes
// were sent.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, int, error) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/x-protobuf" {
		return nil, 0, errMediaType
	}
	wire := &countReader{r: http.MaxBytesReader(w, r.Body, maxWire)}
	var src io.Reader = wire
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip":
		zr, err := gzip.NewReader(wire)
		if err != nil {
			return nil, wire.n, fmt.Errorf("gunzip: %w", err)
		}
		defer zr.Close()
		src = zr
	default:
		return nil, 0, errCompression
	}
	body, err := io.ReadAll(io.LimitReader(src, maxBody+1))
	if err != nil {
		return nil, wire.n, fmt.Errorf("read body: %w", err)
	}
	if len(body) > maxBody {
		return nil, wire.n, errTooLarge
	}
	return body, wire.n, nil
}

var errMediaType = errors.New("content type is not application/x-protobuf")

func statusOf(err error) int {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, errTooLarge), errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, errMediaType), errors.Is(err, errCompression):
		return http.StatusUnsupportedMediaType
	}
	return http.StatusBadRequest
}

type countReader struct {
	r io.Reader
	n int
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

func takeSpans(body []byte, reject int) (Batch, proto.Message, error) {
	var req coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return Batch{}, nil, err
	}
	spans, rejected := leaveOut(decodeSpans(&req, time.Now()), reject)
	answer := &coltracepb.ExportTraceServiceResponse{}
	if rejected > 0 {
		answer.PartialSuccess = &coltracepb.ExportTracePartialSuccess{RejectedSpans: rejected, ErrorMessage: "told to reject"}
	}
	return Batch{Spans: spans}, answer, nil
}

func takePoints(body []byte, reject int) (Batch, proto.Message, error) {
	var req colmetricspb.ExportMetricsServiceRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return Batch{}, nil, err
	}
	points, rejected := leaveOut(decodeMetrics(&req), reject)
	answer := &colmetricspb.ExportMetricsServiceResponse{}
	if rejected > 0 {
		answer.PartialSuccess = &colmetricspb.ExportMetricsPartialSuccess{RejectedDataPoints: rejected, ErrorMessage: "told to reject"}
	}
	return Batch{Points: points}, answer, nil
}

func takeLogs(body []byte, reject int) (Batch, proto.Message, error) {
	var req collogspb.ExportLogsServiceRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return Batch{}, nil, err
	}
	logs, rejected := leaveOut(decodeLogs(&req, time.Now()), reject)
	answer := &collogspb.ExportLogsServiceResponse{}
	if rejected > 0 {
		answer.PartialSuccess = &collogspb.ExportLogsPartialSuccess{RejectedLogRecords: rejected, ErrorMessage: "told to reject"}
	}
	return Batch{Logs: logs}, answer, nil
}

// leaveOut drops the last n items, or all where there are fewer.
func leaveOut[T any](items []T, n int) ([]T, int64) {
	n = min(max(n, 0), len(items))
	return items[:len(items)-n], int64(n)
}
