//go:build !go1.24

package main

// startH2C: net/http has no HTTP/2 without TLS yet.
func startH2C() (target, error) { return target{}, nil }
