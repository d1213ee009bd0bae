//! Best-fit decreasing against a slow and obvious version of itself.

use rust_tokenize::bins::{MAX_CAPACITY, pack};
use rust_tokenize::error::Error;

use crate::random::Random;

/// What each bin holds, by the definition: longest first, into the fullest bin with room.
fn slow_fills(lengths: &[usize], capacity: usize) -> Vec<usize> {
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
    fills.sort_unstable();
    fills
}

fn fills(lengths: &[usize], bins: &[u32]) -> Vec<usize> {
    let count = bins.iter().max().map_or(0, |&last| last as usize + 1);
    let mut fills = vec![0; count];
    for (length, &bin) in lengths.iter().zip(bins) {
        fills[bin as usize] += length;
    }
    fills
}

#[test]
fn random_lengths_fill_the_bins_of_the_slow_version() {
    for seed in 0..400 {
        let mut random = Random::new(seed);
        // 1 and 64 are edges of a bit word; 5000 needs three levels of words
        let capacity = *random.pick(&[1, 2, 63, 64, 65, 100, 4096, 5000]);
        let longest = random.within(1..capacity * 5 / 4 + 2); // some items above the capacity
        let count = random.below(300);
        let lengths: Vec<usize> = (0..count).map(|_| random.below(longest + 1)).collect();
        let bins = pack(&lengths, capacity).unwrap();
        assert_eq!(bins, pack(&lengths, capacity).unwrap());
        let mut found = fills(&lengths, &bins);
        found.sort_unstable();
        assert_eq!(found, slow_fills(&lengths, capacity), "seed {seed}");
    }
}

#[test]
fn known_small_cases() {
    assert_eq!(pack(&[], 10).unwrap(), Vec::<u32>::new());
    assert_eq!(pack(&[6, 5, 4, 3, 2], 10).unwrap(), [0, 1, 0, 1, 1]);
    assert_eq!(pack(&[5, 5, 5, 5], 10).unwrap(), [0, 0, 1, 1]); // ties in input order
    assert_eq!(pack(&[3, 99, 7], 10).unwrap(), [1, 0, 1]); // above the capacity: alone
    assert_eq!(pack(&[0, 0], 10).unwrap(), [0, 0]);
    assert_eq!(pack(&[99, 0], 10).unwrap(), [0, 1]); // nothing joins an item above the capacity
}

#[test]
fn capacities_that_make_no_sense_are_refused() {
    assert!(matches!(pack(&[1], 0), Err(Error::Argument(_))));
    assert!(matches!(pack(&[MAX_CAPACITY, 1], usize::MAX), Err(Error::Argument(_))));
    assert_eq!(pack(&[1, 2], usize::MAX).unwrap(), [0, 0]); // all fits: no table of that size
}
