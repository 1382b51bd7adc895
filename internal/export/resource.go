package export

import (
	"sync"

	"go.opentelemetry.io/otel/attribute"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/plainframework/agent/internal/probes/event"
)

// maxProcesses bounds caches that have a process as their key. A cache that is
// full is emptied: entries are cheap to make again, and those of processes that
// have ended go with the rest.
const maxProcesses = 1024

// resourceCache holds the OTLP resource of each process.
type resourceCache struct {
	mu sync.Mutex
	m  map[*event.Process]*resourcepb.Resource
}

func newResourceCache() *resourceCache {
	return &resourceCache{m: make(map[*event.Process]*resourcepb.Resource)}
}

func (c *resourceCache) of(p *event.Process) *resourcepb.Resource {
	if p == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.m[p]
	if r == nil {
		if len(c.m) >= maxProcesses {
			clear(c.m)
		}
		r = &resourcepb.Resource{Attributes: attributesProto(p.Resource)}
		c.m[p] = r
	}
	return r
}

// attributesProto converts attributes for messages that are few: resources and
// metric points. It goes over the wire form, so that there is one encoding.
func attributesProto(attrs []attribute.KeyValue) []*commonpb.KeyValue {
	var b []byte
	b = appendAttributes(b, tagElement, 0, attrs[:min(len(attrs), maxAttributes)])
	var list commonpb.KeyValueList
	if err := proto.Unmarshal(b, &list); err != nil {
		return nil // not reached: the encoding is well formed
	}
	return list.Values
}
