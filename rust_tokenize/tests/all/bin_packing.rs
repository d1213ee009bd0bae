//! Packing against a slow and obvious version of itself, and against best-fit decreasing.

use rust_tokenize::bins::{MAX_CAPACITY, Mode, pack};
use rust_tokenize::error::Error;

use crate::random::Random;

/// The global mode by its definition, on a plain list: what each bin holds, in the order filled.
fn slow_bins(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let (long, fitting): (Vec<_>, Vec<_>) =
        (0..lengths.len()).partition(|&item| lengths[item] > capacity);
    let mut left = fitting;
    left.sort_by_key(|&item| std::cmp::Reverse(lengths[item])); // stable
    let mut bins: Vec<Vec<usize>> = long.into_iter().map(|item| vec![item]).collect();
    while !left.is_empty() {
        let (mut bin, mut room) = (Vec::new(), capacity);
        while let Some(longest) = slow_longest(lengths, &left, room) {
            let (first, second) = if longest > 0 && room > 2 * longest {
                let shortest = lengths[*left.last().unwrap()];
                let others = room.div_ceil(longest) - 1;
                let share = room.saturating_sub(others * (longest + shortest) / 2);
                let taken = slow_longest(lengths, &left, share.min(longest));
                (taken.unwrap_or(longest), None)
            } else {
                slow_pair(lengths, &left, longest, room)
            };
            for length in [Some(first), second].into_iter().flatten() {
                let place = left.iter().position(|&item| lengths[item] == length).unwrap();
                bin.push(left.remove(place));
                room -= length;
            }
        }
        bins.push(bin);
    }
    bins
}

fn slow_longest(lengths: &[usize], left: &[usize], room: usize) -> Option<usize> {
    left.iter().map(|&item| lengths[item]).filter(|&length| length <= room).max()
}

/// Of the first eight lengths a pair can begin with, the one with the fullest pair; or one item.
fn slow_pair(
    lengths: &[usize],
    left: &[usize],
    longest: usize,
    room: usize,
) -> (usize, Option<usize>) {
    let shortest = lengths[*left.last().unwrap()];
    let mut firsts: Vec<usize> = left.iter().map(|&item| lengths[item]).collect();
    firsts.dedup();
    firsts.retain(|&first| {
        first <= longest && first + shortest <= room.max(shortest) && 2 * first >= room
    });
    let mut best = (longest, None);
    for first in firsts.into_iter().take(8) {
        let mut others = left.to_vec();
        others.remove(left.iter().position(|&item| lengths[item] == first).unwrap());
        let second = slow_longest(lengths, &others, room - first);
        if first + second.unwrap_or(0) > best.0 + best.1.unwrap_or(0) {
            best = (first, second);
        }
    }
    best
}

fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> usize {
    let mut sorted = lengths.to_vec();
    sorted.sort_by(|left, right| right.cmp(left));
    let mut fills: Vec<usize> = Vec::new();
    for length in sorted {
        let fits = fills.iter_mut().filter(|fill| **fill + length <= capacity);
        match fits.max_by_key(|fill| **fill) {
            Some(fill) => *fill += length,
            None => fills.push(length),
        }
    }
    fills.len()
}

fn count(bins: &[u32]) -> usize {
    bins.iter().max().map_or(0, |&last| last as usize + 1)
}

/// Every bin is used, and holds no more than the capacity or one item above it.
fn check(lengths: &[usize], capacity: usize, bins: &[u32]) {
    let mut held: Vec<Vec<usize>> = vec![Vec::new(); count(bins)];
    for (&length, &bin) in lengths.iter().zip(bins) {
        held[bin as usize].push(length);
    }
    for items in held {
        assert!(!items.is_empty());
        assert!(items.iter().sum::<usize>() <= capacity || items.len() == 1, "{items:?}");
    }
}

fn random_lengths(random: &mut Random, capacity: usize) -> Vec<usize> {
    let longest = random.within(1..capacity * 5 / 4 + 2); // some items above the capacity
    let shortest = random.below(longest);
    let count = random.below(300);
    (0..count).map(|_| random.within(shortest..longest + 1)).collect()
}

#[test]
fn random_lengths_fill_the_bins_of_the_slow_version() {
    let (mut ours, mut theirs) = (0, 0);
    for seed in 0..400 {
        let mut random = Random::new(seed);
        // 1 and 64 are edges of a bit word; 5000 needs three levels of words
        let capacity = *random.pick(&[1, 2, 63, 64, 65, 100, 4096, 5000]);
        let lengths = random_lengths(&mut random, capacity);
        let bins = pack(&lengths, capacity, Mode::Global).unwrap();
        assert_eq!(bins, pack(&lengths, capacity, Mode::Global).unwrap());
        let slow = slow_bins(&lengths, capacity);
        for (number, items) in slow.iter().enumerate() {
            assert!(items.iter().all(|&item| bins[item] as usize == number), "seed {seed}");
        }
        assert_eq!(count(&bins), slow.len(), "seed {seed}");
        check(&lengths, capacity, &bins);
        ours += slow.len();
        theirs += best_fit_decreasing(&lengths, capacity);
    }
    assert!(ours <= theirs, "{ours} bins where best-fit decreasing needs {theirs}");
}

#[test]
fn known_small_cases() {
    let global = |lengths: &[usize]| pack(lengths, 10, Mode::Global).unwrap();
    assert_eq!(global(&[]), Vec::<u32>::new());
    assert_eq!(global(&[6, 5, 4, 3, 2]), [0, 1, 0, 1, 1]);
    assert_eq!(global(&[5, 5, 5, 5]), [0, 0, 1, 1]); // ties in input order
    assert_eq!(global(&[3, 99, 7]), [1, 0, 1]); // above the capacity: alone, and first
    assert_eq!(global(&[0, 0]), [0, 0]);
    assert_eq!(global(&[99, 0]), [0, 1]); // nothing joins an item above the capacity
    // best-fit decreasing would put 7 alone with 2, and need a third bin for the last 2
    assert_eq!(global(&[7, 6, 3, 2, 2]), [0, 1, 0, 1, 1]);
}

#[test]
fn a_window_moves_no_item_far() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let capacity = *random.pick(&[1, 64, 100, 4096]);
        let lengths = random_lengths(&mut random, capacity);
        let window = random.within(1..100);
        let bins = pack(&lengths, capacity, Mode::Windowed(window)).unwrap();
        check(&lengths, capacity, &bins);
        let whole = pack(&lengths, capacity, Mode::Global).unwrap();
        assert_eq!(pack(&lengths, capacity, Mode::Windowed(lengths.len().max(1))).unwrap(), whole);
        // The window a bin was filled in: bins are numbered in that order.
        let mut filled = vec![0; count(&bins)];
        for (item, &bin) in bins.iter().enumerate() {
            filled[bin as usize] = filled[bin as usize].max(item / window);
        }
        for bin in 1..filled.len() {
            filled[bin] = filled[bin].max(filled[bin - 1]);
        }
        // Of the items older than the window before, those of one bin may be waiting.
        for now in 0..lengths.len() / window {
            let waiting = (0..lengths.len())
                .filter(|&item| item / window + 1 < now && filled[bins[item] as usize] >= now);
            let tokens: Vec<usize> = waiting.map(|item| lengths[item]).collect();
            let fits = tokens.len() < 2 || tokens.iter().sum::<usize>() <= capacity;
            assert!(fits, "seed {seed}: {tokens:?} wait in window {now}");
        }
    }
}

/// Like answers with their questions: most of 100 to 250 tokens, few longer, none very short.
fn answer_lengths(count: usize) -> Vec<usize> {
    let mut random = Random::new(7);
    let mut length = || 60 + (0..4).map(|_| random.below(60)).sum::<usize>() + random.below(30);
    (0..count).map(|_| length()).collect()
}

fn fill(lengths: &[usize], capacity: usize, mode: Mode) -> f64 {
    let bins = pack(lengths, capacity, mode).unwrap();
    let room = u32::try_from(count(&bins) * capacity).unwrap();
    f64::from(u32::try_from(lengths.iter().sum::<usize>()).unwrap()) / f64::from(room)
}

#[test]
fn bins_of_answers_are_full() {
    let lengths = answer_lengths(50_000);
    assert!(fill(&lengths, 2048, Mode::Global) > 0.998);
    assert!(fill(&lengths, 2048, Mode::Windowed(10_000)) > 0.997);
    assert!(fill(&lengths, 2048, Mode::InOrder) > 0.93);
}

#[test]
fn in_order_keeps_the_order() {
    let in_order = |lengths: &[usize]| pack(lengths, 10, Mode::InOrder).unwrap();
    assert_eq!(in_order(&[4, 6, 1, 9, 2, 10, 0, 1]), [0, 0, 1, 1, 2, 3, 3, 4]);
    assert_eq!(in_order(&[99, 0, 1, 99, 99, 2]), [0, 1, 1, 2, 3, 4]);
    assert_eq!(in_order(&[0, 99]), [0, 1]);
    assert_eq!(in_order(&[usize::MAX, usize::MAX]), [0, 1]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for mode in [Mode::Global, Mode::Windowed(5), Mode::InOrder] {
        assert!(matches!(pack(&[1], 0, mode), Err(Error::Argument(_))));
        assert_eq!(pack(&[1, 2], usize::MAX, mode).unwrap(), [0, 0]); // no table of that size
    }
    assert!(matches!(pack(&[1], 5, Mode::Windowed(0)), Err(Error::Argument(_))));
    let refused = pack(&[MAX_CAPACITY, 1], usize::MAX, Mode::Global);
    assert!(matches!(refused, Err(Error::Argument(_))));
}
