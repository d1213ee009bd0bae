//! How fast each scanner cuts a file: `cargo run --release --example scan_speed -- FILE...`
//!
//! Each line of a file is a text, as a record is. MB/s by blocks, and one by one.
#![allow(clippy::cast_precision_loss, clippy::expect_used, clippy::print_stdout)] // a program

use std::hint::black_box;
use std::time::{Duration, Instant};

use rust_tokenize::native::scan::{Cl100k, DeepSeek, Expression, Gpt2, O200k, OneByOne, Scanner};

fn main() {
    for path in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&path).expect("a file of UTF-8");
        println!("{path}: {} bytes", text.len());
        report("gpt2", Gpt2::<false>, &text);
        report("digits, gpt2", Gpt2::<true>, &text);
        report("cl100k", Cl100k::<3, false>, &text);
        report("qwen2", Cl100k::<1, false>, &text);
        report("o200k", O200k::<3, true>, &text);
        report("tekken", O200k::<1, false>, &text);
        report("deepseek", DeepSeek, &text);
    }
}

fn report(name: &str, expression: impl Expression, text: &str) {
    let (fast, plain) = (speed(expression, text), speed(OneByOne(expression), text));
    println!("{name:>14} {fast:7.0} MB/s, {plain:6.0} one by one");
}

/// The best of several passes, in MB/s.
fn speed(scanner: impl Scanner, text: &str) -> f64 {
    let mut best = Duration::MAX;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(300) {
        let pass = Instant::now();
        black_box(text.split_inclusive('\n').map(|line| count(scanner, line)).sum::<usize>());
        best = best.min(pass.elapsed());
    }
    text.len() as f64 / best.as_secs_f64() / 1e6
}

fn count(scanner: impl Scanner, text: &str) -> usize {
    let (mut ends, mut start, mut total) = ([0; 256], 0, 0);
    loop {
        let found = scanner.scan(text, start, &mut ends);
        total += found;
        if found < ends.len() {
            return total;
        }
        start = ends[found - 1];
    }
}
