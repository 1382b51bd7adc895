package probes

import (
	"testing"

	"go.opentelemetry.io/otel/attribute"

	"github.com/plainframework/agent/bpf"
)

func TestGRPCAddress(t *testing.T) {
	for _, c := range []struct {
		target, address string
		port            int64
	}{
		{"localhost:50051", "localhost", 50051},
		{"shop.prod.svc:443", "shop.prod.svc", 443},
		{"shop", "shop", 0},
		{"dns:///shop:50051", "shop", 50051},
		{"dns:shop:50051", "shop", 50051},
		{"dns://8.8.8.8/shop:50051", "shop", 50051},
		{"passthrough:///10.1.2.3:80", "10.1.2.3", 80},
		{"[::1]:50051", "::1", 50051},
		{"unix:///run/app.sock", "/run/app.sock", 0},
		{"unix:app.sock", "app.sock", 0},
		{"unix-abstract:name", "name", 0},
		{"xds:///shop", "shop", 0},
		{"", "", 0},
		{"://", "", 0},
	} {
		var address string
		var port int64
		for _, kv := range grpcAddress(c.target) {
			switch kv.Key {
			case "server.address":
				address = kv.Value.AsString()
			case "server.port":
				port = kv.Value.AsInt64()
			}
		}
		if address != c.address || port != c.port {
			t.Errorf("%q is at %q, port %d; want %q, %d", c.target, address, port, c.address, c.port)
		}
	}
}

// TestGRPCSeries: attributes of a point, with what a process could make up.
func TestGRPCSeries(t *testing.T) {
	const server, client = uint32(bpf.AgentGrpcKindRECORD_GRPC_SERVER), uint32(bpf.AgentGrpcKindRECORD_GRPC_CLIENT)
	series := func(text string, method int) *bpf.AgentSeries {
		s := &bpf.AgentSeries{TextLen: uint32(len(text)), Extra: uint64(method)}
		for i := range len(text) {
			s.Text[i] = int8(text[i])
		}
		return s
	}
	for _, c := range []struct {
		kind   uint32
		detail uint64
		series *bpf.AgentSeries
		want   map[attribute.Key]string
	}{
		{server, 0, series("/a.B/C", 6), map[attribute.Key]string{"rpc.method": "a.B/C", "rpc.response.status_code": "OK"}},
		{server, 5, series("/a.B/C", 6), map[attribute.Key]string{"rpc.method": "a.B/C", "rpc.response.status_code": "NOT_FOUND"}},
		{server, 14, series("/a.B/C", 6), map[attribute.Key]string{"rpc.method": "a.B/C", "rpc.response.status_code": "UNAVAILABLE", "error.type": "UNAVAILABLE"}},
		{server, 12 | grpcNoMethod, series("", 0), map[attribute.Key]string{"rpc.method": "_OTHER", "rpc.response.status_code": "UNIMPLEMENTED", "error.type": "UNIMPLEMENTED"}},
		{client, 5, series("/a.B/Cshop:80", 6), map[attribute.Key]string{"rpc.method": "a.B/C", "rpc.response.status_code": "NOT_FOUND", "error.type": "NOT_FOUND", "server.address": "shop", "server.port": "80"}},
		{client, 99, series("/a.B/C", 1<<40), map[attribute.Key]string{"rpc.method": "a.B/C", "rpc.response.status_code": "99", "error.type": "99"}},
	} {
		c.want["rpc.system.name"] = "grpc"
		got := grpcSeries(nil, &bpf.AgentSeriesKey{Kind: c.kind, Detail: [2]uint64{c.detail}}, c.series)
		if len(got) != len(c.want) {
			t.Errorf("%v, want %v", got, c.want)
		}
		for _, kv := range got {
			if c.want[kv.Key] != kv.Value.String() {
				t.Errorf("%s is %s, want %v", kv.Key, kv.Value.String(), c.want)
			}
		}
	}
}
