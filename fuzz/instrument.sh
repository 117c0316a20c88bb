#!/usr/bin/env bash
# A RUSTC_WRAPPER that lets libFuzzer see the edges of this crate and of what decodes files for it, and of nothing else: the rest is taken
# as it was compiled for tests. See docs/security.md.
name=
for argument in "$@"; do
    [ "$previous" = --crate-name ] && name=$argument
    previous=$argument
done
case $name in
    offshoot | prost | tar | zip | flate2 | parquet | ndarray_npy | png | zune_jpeg | jpeg_decoder | image_webp | tiff | gif | image | serde_json)
        exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
            -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
            -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing ;;
    *) exec "$@" ;;
esac
