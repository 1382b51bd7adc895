# The agent's image, for amd64 and arm64:
#
#     docker buildx build --platform linux/amd64,linux/arm64 -t plain-agent .
#
# The compiler runs on the machine that builds, whatever the image is for: the program is
# static, and the BPF object is committed.
FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY bpf bpf
COPY cmd cmd
COPY internal internal
ARG TARGETOS=linux
ARG TARGETARCH
ARG VERSION=devel
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X main.released=$VERSION" -o /agent ./cmd/agent

FROM gcr.io/distroless/static-debian12
COPY --from=build /agent /agent
# Root, for the capabilities that attaching needs; without them "agent doctor" says which.
USER 0
ENTRYPOINT ["/agent"]
CMD ["run", "--all"]
