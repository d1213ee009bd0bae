#!/bin/sh
# Stands in for rustc (RUSTC_WRAPPER) and instruments our own crates only, with what cargo-fuzz passes but for the
# sanitizer, which only nightly Rust has. The library `tokenizers` is not what is searched, and takes minutes.
case "$*" in
*"--crate-name rust_tokenize"* | *fuzz_targets/*)
    exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$@"
