// Command grpc is, for the end-to-end tests, a server of grpc-go's interoperability tests
// and, with -target, an HTTP server that calls it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func main() {
	target := flag.String("target", "", "address of the gRPC server to call")
	workers := flag.Uint("workers", 0, "goroutines of the gRPC server that serve one call after the other")
	flag.Parse()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("grpc listens on %s\n", ln.Addr())
	if *target == "" {
		s := grpc.NewServer(grpc.NumStreamWorkers(uint32(*workers)))
		pb.RegisterTestServiceServer(s, interop.NewTestServer())
		log.Fatal(s.Serve(ln))
	}
	f := front{conn: dial(*target), down: pb.NewTestServiceClient(dial("127.0.0.1:1"))} // where nobody listens
	f.up = pb.NewTestServiceClient(f.conn)
	log.Fatal(http.Serve(ln, f.routes()))
}

func dial(address string) *grpc.ClientConn {
	conn, err := grpc.Dial(address, grpc.WithInsecure()) // the names that every version has
	if err != nil {
		log.Fatal(err)
	}
	return conn
}

type front struct {
	conn     *grpc.ClientConn
	up, down pb.TestServiceClient
}

// routes answers each path with the code of the call that it made.
func (f front) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, call func(context.Context, *http.Request) error) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			err := call(r.Context(), r)
			if err != nil && r.FormValue("fail") != "" {
				w.WriteHeader(http.StatusInternalServerError)
			}
			fmt.Fprint(w, status.Code(err))
		})
	}
	handle("/unary", func(ctx context.Context, _ *http.Request) error { return f.unary(ctx, 0) })
	handle("/code", func(ctx context.Context, r *http.Request) error {
		code, _ := strconv.Atoi(r.FormValue("is"))
		return f.unary(ctx, codes.Code(code))
	})
	handle("/goroutine", func(ctx context.Context, _ *http.Request) error {
		done := make(chan error)
		go func() { done <- f.unary(ctx, 0) }()
		return <-done
	})
	handle("/propagated", func(ctx context.Context, r *http.Request) error {
		return f.unary(metadata.AppendToOutgoingContext(ctx, "traceparent", r.Header.Get("X-Context")), 0)
	})
	handle("/unknown", func(ctx context.Context, _ *http.Request) error {
		_, err := f.up.UnimplementedCall(ctx, &pb.Empty{})
		return err
	})
	handle("/unknown-service", func(ctx context.Context, _ *http.Request) error {
		_, err := pb.NewUnimplementedServiceClient(f.conn).UnimplementedCall(ctx, &pb.Empty{})
		return err
	})
	handle("/bidi", func(ctx context.Context, _ *http.Request) error { return f.pingPong(ctx, 3, 0) })
	handle("/bidi-code", func(ctx context.Context, _ *http.Request) error { return f.pingPong(ctx, 1, codes.DataLoss) })
	handle("/bidi-two", f.twoStreams)
	handle("/download", f.download)
	handle("/upload", f.upload)
	handle("/cancel", f.cancel)
	handle("/deadline", f.deadline)
	handle("/down", func(ctx context.Context, _ *http.Request) error {
		_, err := f.down.EmptyCall(ctx, &pb.Empty{})
		return err
	})
	handle("/down-stream", func(ctx context.Context, _ *http.Request) error {
		_, err := f.down.FullDuplexCall(ctx)
		return err
	})
	return mux
}

func (f front) unary(ctx context.Context, code codes.Code) error {
	_, err := f.up.UnaryCall(ctx, &pb.SimpleRequest{
		ResponseSize: 100, ResponseStatus: &pb.EchoStatus{Code: int32(code), Message: "as asked"},
	})
	return err
}

func request(wait time.Duration, code codes.Code) *pb.StreamingOutputCallRequest {
	return &pb.StreamingOutputCallRequest{
		ResponseParameters: []*pb.ResponseParameters{{Size: 10, IntervalUs: int32(wait / time.Microsecond)}},
		ResponseStatus:     &pb.EchoStatus{Code: int32(code), Message: "as asked"},
	}
}

func ping(stream pb.TestService_FullDuplexCallClient, code codes.Code) error {
	if err := stream.Send(request(0, code)); err != nil {
		return err
	}
	_, err := stream.Recv()
	return err
}

// drain reads a stream to its end.
func drain(recv func() (*pb.StreamingOutputCallResponse, error)) error {
	for {
		if _, err := recv(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (f front) pingPong(ctx context.Context, n int, code codes.Code) error {
	stream, err := f.up.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	for i := 0; i < n; i++ {
		if err := ping(stream, code); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return drain(stream.Recv)
}

// twoStreams has two streams open, one of which ends on another goroutine, and a unary
// call between.
func (f front) twoStreams(ctx context.Context, _ *http.Request) error {
	first, err := f.up.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	second, err := f.up.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	if err := f.unary(ctx, 0); err != nil {
		return err
	}
	_ = first.CloseSend()
	if err := drain(first.Recv); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		_ = second.CloseSend()
		done <- drain(second.Recv)
	}()
	return <-done
}

func (f front) download(ctx context.Context, _ *http.Request) error {
	stream, err := f.up.StreamingOutputCall(ctx, request(0, 0))
	if err != nil {
		return err
	}
	return drain(stream.Recv)
}

func (f front) upload(ctx context.Context, _ *http.Request) error {
	stream, err := f.up.StreamingInputCall(ctx)
	if err != nil {
		return err
	}
	for i := 0; i < 3; i++ {
		if err := stream.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: []byte("some")}}); err != nil {
			return err
		}
	}
	_, err = stream.CloseAndRecv()
	return err
}

// cancel leaves a stream by its context.
func (f front) cancel(ctx context.Context, _ *http.Request) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := f.up.FullDuplexCall(ctx)
	if err == nil {
		err = ping(stream, 0)
	}
	cancel()
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

func (f front) deadline(ctx context.Context, _ *http.Request) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	stream, err := f.up.HalfDuplexCall(ctx)
	if err != nil {
		return err
	}
	_ = stream.Send(request(60*time.Millisecond, 0))
	_ = stream.CloseSend()
	return drain(stream.Recv)
}
