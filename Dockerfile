# Rollcall as one static program in an image with nothing beside it.
#
#     docker build -t rollcall .
#     docker run -p 8000:8000 -v rollcall:/data rollcall
#
# docs/deploy.md says what the image holds and how to run it.

# The toolchain of rust-toolchain.toml; whoever moves one moves the other.
FROM docker.io/library/rust:1.95.0-slim-trixie AS build
WORKDIR /src
COPY . .
# What only tests and checks need is not in the image's context (.dockerignore), but the workspace names it.
RUN mkdir -p xtask/src crates/testkit/src \
    && touch xtask/src/main.rs crates/testkit/src/lib.rs
# Static: glibc's own resolver is in it, for /etc/hosts and DNS. The target is named so that build scripts are not linked
# so too. Relocations are packed, and what hashes and encrypts leaves out what only processors with AVX-512 run, which is
# two thirds of a megabyte. Nothing unwinds through what is written in C, so that it needs no tables for that. SQLite leaves
# out its text and geometry searches, which nothing uses. No path is left in it, so that it is the same wherever it is
# built.
ENV CFLAGS="-DMY_ASSEMBLER_IS_TOO_OLD_FOR_512AVX -fno-asynchronous-unwind-tables -fno-unwind-tables" \
    LIBSQLITE3_FLAGS="-USQLITE_ENABLE_FTS3 -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5 -USQLITE_ENABLE_RTREE"
RUN target="$(rustc --print host-tuple)" \
    && export RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs --remap-path-prefix=/usr/local/cargo/registry/src/=/ --remap-path-prefix=/src/=/" \
    && cargo build --locked --profile dist --package rollcall --target "$target" \
    && install -D --strip "target/$target/dist/rollcall" /image/usr/local/bin/rollcall
# Time zones as tables of what changes, not of what follows from it: half a megabyte less.
# The user has a number for engines that want to know that it is not root, and a name for those who look.
RUN install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && mkdir -p /image/usr/share/zoneinfo \
    && zic -b slim -d /image/usr/share/zoneinfo /usr/share/zoneinfo/tzdata.zi \
    && echo 'rollcall:x:65532:65532:Rollcall:/data:/sbin/nologin' > /image/etc/passwd \
    && echo 'rollcall:x:65532:' > /image/etc/group \
    && install -d -m 750 -o 65532 -g 65532 /image/data

FROM scratch
COPY --from=build /image /
USER 65532:65532
WORKDIR /data
VOLUME ["/data"]
ENV LISTEN_ADDR=0.0.0.0:8000 \
    DB_URL=sqlite:///data/rollcall.db
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/local/bin/rollcall", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/rollcall"]
ARG VERSION=dev
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="Rollcall" \
      org.opencontainers.image.description="A real-time attendance server" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
