//go:build go1.21

package main

import "context"

func newer(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {})
	cancel()
	return ctx
}
