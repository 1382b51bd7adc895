// Package bpf holds the kernel side of the agent, written in C, and the Go types
// generated from it. Only internal/probes uses it.
//
// event.h is the contract with user space, maps.h has every shared map, span.h the
// life of a span; each instrumented library has one <library>.bpf.c.
package bpf

//go:generate ./generate.sh
