# Rollcall as one static program in an image with nothing beside it.
#
#     docker build -t rollcall .
#     docker run -p 8000:8000 -v rollcall:/data rollcall
#
# docs/deploy.md says what the image holds and how to run it.

# The toolchain is the one of rust-toolchain.toml; the updater moves both.
FROM docker.io/library/rust:1.95.0-slim-trixie AS build
WORKDIR /src
# That toolchain is in the image: rustup is not to fetch another, nor the components for checks.
ENV RUSTUP_TOOLCHAIN=1.95.0
COPY . .
# What only tests and checks need stays outside of the image's context (.dockerignore), but the workspace names it.
RUN mkdir -p xtask/src crates/testkit/src \
    && touch xtask/src/main.rs crates/testkit/src/lib.rs
# Static glibc, with symbols of its resolver: names are resolved by /etc/hosts and DNS. The target is named, so that the
# flags are not those of build scripts. Paths stay out of the program.
RUN target="$(rustc --print host-tuple)" \
    && export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=/usr/local/cargo/registry/src/=/ --remap-path-prefix=/src/=/" \
    && cargo build --locked --profile dist --package rollcall --target "$target" \
    && install -D "target/$target/dist/rollcall" /image/usr/local/bin/rollcall
RUN install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && printf 'rollcall:x:65532:65532:Rollcall:/data:/sbin/nologin\n' > /image/etc/passwd \
    && printf 'rollcall:x:65532:\n' > /image/etc/group \
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
