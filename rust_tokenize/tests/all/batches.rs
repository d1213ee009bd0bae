//! Plans and packed batches against what their definitions say.

use std::collections::HashMap;

use rust_tokenize::batch::{MULTIPLE, PackedBatch, pack_batch};
use rust_tokenize::error::{Error, Result};
use rust_tokenize::plan::{self, Plan};
use rust_tokenize::spool::{Spool, hash_ids};

use crate::random::{Folder, Random};
use crate::spools::{Pair, write_spool};

fn to_usize(number: i32) -> usize {
    number.try_into().unwrap()
}

/// Nobody interrupts.
fn plan_batches(spool: &Spool, entries: &[usize], max_tokens: usize) -> Result<Plan> {
    plan::plan_batches(spool, entries, max_tokens, &|| Ok(()))
}

/// Few distinct contexts, so that siblings abound.
fn random_pairs(random: &mut Random, count: usize) -> Vec<Pair> {
    let num_contexts = random.within(1..count + 2);
    let contexts: Vec<Vec<i32>> = (0..num_contexts)
        .map(|_| (0..random.within(1..30)).map(|_| random.below(5).try_into().unwrap()).collect())
        .collect();
    let mut pair = || {
        let context = random.pick(&contexts).clone();
        (context, (0..random.below(40)).map(|_| random.below(9).try_into().unwrap()).collect())
    };
    (0..count).map(|_| pair()).collect()
}

/// Tokens of a batch by its definition: each distinct context once, and all but the last target of
/// each entry.
fn count_tokens(pairs: &[Pair], entries: &[usize]) -> usize {
    let contexts: HashMap<&Vec<i32>, usize> =
        entries.iter().map(|&entry| (&pairs[entry].0, pairs[entry].0.len())).collect();
    let responses: usize =
        entries.iter().map(|&entry| pairs[entry].1.len().saturating_sub(1)).sum();
    contexts.values().sum::<usize>() + responses
}

fn check_plan(plan: &Plan, pairs: &[Pair], wanted: &[usize], max_tokens: usize) {
    let mut seen = Vec::new();
    let mut total = 0;
    for batch in 0..plan.num_batches() {
        let entries = plan.batch_entries(batch).unwrap();
        let tokens = count_tokens(pairs, entries);
        assert!(tokens <= max_tokens || entries.len() == 1, "{tokens} tokens in {entries:?}");
        let targets: usize = entries.iter().map(|&entry| pairs[entry].1.len()).sum();
        assert!(targets <= max_tokens || entries.len() == 1, "{targets} targets in {entries:?}");
        seen.extend_from_slice(entries);
        total += tokens;
    }
    seen.sort_unstable();
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    assert_eq!(seen, wanted);
    // Two units of the same context may share a batch: the plan counts their prompt twice, the
    // batch has it once.
    assert!(total <= plan.total_tokens());
    let alone: usize = wanted.iter().map(|&entry| count_tokens(pairs, &[entry])).sum();
    assert_eq!(plan.tokens_without_sharing(), alone);
}

#[test]
fn random_plans_hold_every_entry_once_and_fit() {
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let count = random.within(1..60);
        let pairs = random_pairs(&mut random, count);
        let folder = Folder::new();
        let spool = write_spool(folder.path(), &pairs);
        let mut wanted: Vec<usize> = (0..count).filter(|_| random.below(4) > 0).collect();
        let max_tokens = *random.pick(&[1, 20, 64, 200, 1_000_000]);
        let plan = plan_batches(&spool, &wanted, max_tokens).unwrap();
        check_plan(&plan, &pairs, &wanted, max_tokens);
        wanted.reverse(); // the plan depends on the set alone
        assert_eq!(plan_batches(&spool, &wanted, max_tokens).unwrap(), plan, "seed {seed}");
    }
}

#[test]
fn siblings_form_a_unit_and_a_large_unit_is_cut() {
    let prompt = vec![1; 10];
    let pairs: Vec<Pair> = (0..5).map(|_| (prompt.clone(), vec![2; 6])).collect(); // 5 tokens of response each
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &pairs);
    let plan = plan_batches(&spool, &[4, 2, 0, 1, 3], 35).unwrap();
    assert_eq!(plan.num_batches(), 1);
    assert_eq!(plan.batch_entries(0).unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!((plan.total_tokens(), plan.tokens_without_sharing()), (35, 75));
    let plan = plan_batches(&spool, &[0, 1, 2, 3, 4], 20).unwrap();
    let batches: Vec<_> =
        (0..plan.num_batches()).map(|batch| plan.batch_entries(batch).unwrap()).collect();
    assert_eq!(batches, [&[0, 1][..], &[2, 3], &[4]]);
    let plan = plan_batches(&spool, &[0, 1, 2, 3, 4], 3).unwrap(); // each alone is too long, none is refused
    assert_eq!((plan.num_batches(), plan.total_tokens()), (5, 75));
}

/// Options of a question are one token each: they cost no tokens, but a row each.
#[test]
fn answers_of_one_token_take_their_share_of_the_budget() {
    let folder = Folder::new();
    let pairs: Vec<Pair> = (0..300).map(|answer| (vec![7; 10], vec![answer])).collect();
    let spool = write_spool(folder.path(), &pairs);
    let plan = plan_batches(&spool, &(0..300).collect::<Vec<_>>(), 64).unwrap();
    let sizes: Vec<usize> =
        (0..plan.num_batches()).map(|batch| plan.batch_entries(batch).unwrap().len()).collect();
    assert_eq!(sizes, [64, 64, 64, 64, 44]);
}

#[test]
fn plans_refuse_what_makes_no_sense() {
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &[(vec![1], vec![2]), (vec![1], vec![2])]);
    for (entries, max_tokens) in [(&[0][..], 0), (&[2], 10), (&[1, 0, 1], 10)] {
        let refused = plan_batches(&spool, entries, max_tokens);
        assert!(matches!(refused, Err(Error::Argument(_))), "{entries:?}");
    }
    let plan = plan_batches(&spool, &[], 10).unwrap();
    assert_eq!((plan.num_batches(), plan.total_tokens()), (0, 0));
    assert!(matches!(plan.batch_entries(0), Err(Error::Argument(_))));
    assert!(matches!(pack_batch(&spool, &[]), Err(Error::Argument(_))));
    assert!(matches!(pack_batch(&spool, &[2]), Err(Error::Argument(_))));
}

#[test]
fn a_plan_ends_when_it_is_told_to() {
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &[(vec![1], vec![2]), (vec![1], vec![2])]);
    let told =
        plan::plan_batches(&spool, &[0, 1], 10, &|| Err(Error::Interrupted("enough".into())));
    assert!(matches!(told, Err(Error::Interrupted(_))));
}

/// Two different contexts of equal length and equal hash: when the upper halves agree after two
/// ids, a third id can undo the difference between the lower halves.
fn colliding_contexts() -> (Vec<i32>, Vec<i32>) {
    let mix = |state: u64, id: i32| {
        let product = (state ^ u64::from(id.cast_unsigned())).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        product ^ (product >> 32)
    };
    let mixed = |id: i32| mix(mix(0x9E37_79B9_7F4A_7C15, id), 0);
    let mut seen: HashMap<u64, i32> = HashMap::new();
    for second in 0..10_000_000 {
        if let Some(first) = seen.insert(mixed(second) >> 32, second)
            && let Ok(undo) = i32::try_from(mixed(first) ^ mixed(second))
        {
            return (vec![first, 0, 0], vec![second, 0, undo]);
        }
    }
    panic!("no collision among ten million contexts")
}

#[test]
fn contexts_that_only_collide_are_not_merged() {
    let (left, right) = colliding_contexts();
    assert_ne!(left, right);
    assert_eq!(hash_ids(&left), hash_ids(&right));
    let pairs = [
        (left.clone(), vec![1, 2]),
        (right.clone(), vec![1, 2]),
        (left, vec![3]),
        (right, vec![4]),
    ];
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &pairs);
    let plan = plan_batches(&spool, &[0, 1, 2, 3], 100).unwrap();
    assert_eq!(plan.batch_entries(0).unwrap(), [0, 2, 1, 3]); // two units
    assert_eq!(plan.total_tokens(), 8);
    check_batch(&spool, &pairs, &[0, 1, 2, 3]);
}

/// Checks a batch entry by entry against the ids, and that nothing else is in it.
fn check_batch(spool: &Spool, pairs: &[Pair], entries: &[usize]) -> PackedBatch {
    let batch = pack_batch(spool, entries).unwrap();
    let real_tokens = count_tokens(pairs, entries);
    assert_eq!(batch.input_ids.len(), real_tokens.next_multiple_of(MULTIPLE));
    assert_eq!(batch.position_ids.len(), batch.input_ids.len());
    assert_eq!(batch.cu_seqlens.len(), batch.parents.len() + 1);
    assert_eq!(to_usize(*batch.cu_seqlens.last().unwrap()), batch.input_ids.len());
    assert!(batch.cu_seqlens.windows(2).all(|pair| pair[0] < pair[1])); // no segment is empty
    assert!(batch.input_ids[real_tokens..].iter().all(|&id| id == 0));
    assert_eq!(batch.entry_rows.len(), entries.len() + 1);
    for (member, &entry) in entries.iter().enumerate() {
        let bounds = &batch.entry_rows[member..member + 2];
        let rows = usize::try_from(bounds[0]).unwrap()..usize::try_from(bounds[1]).unwrap();
        assert_eq!(batch.targets[rows.clone()], pairs[entry].1);
        let fed = batch.rows[rows].iter().map(|&row| to_usize(row));
        for (step, row) in fed.enumerate() {
            assert_eq!(seen_from(&batch, row), expected_before(&pairs[entry], step));
        }
    }
    assert_eq!(i64::try_from(batch.num_rows).unwrap(), *batch.entry_rows.last().unwrap());
    assert_eq!(batch.rows.len(), batch.num_rows.next_multiple_of(MULTIPLE));
    assert!(
        batch.rows[batch.num_rows..]
            .iter()
            .chain(&batch.targets[batch.num_rows..])
            .all(|&value| value == 0)
    );
    batch
}

fn expected_before(pair: &Pair, step: usize) -> Vec<i32> {
    [&pair.0[..], &pair.1[..step]].concat()
}

/// The ids a row attends to, by position: its parent's and its own segment up to itself.
fn seen_from(batch: &PackedBatch, row: usize) -> Vec<i32> {
    let bounds = |segment: usize| {
        to_usize(batch.cu_seqlens[segment])..to_usize(batch.cu_seqlens[segment + 1])
    };
    let segment = (0..batch.parents.len()).find(|&segment| bounds(segment).contains(&row)).unwrap();
    let mut tokens: Vec<usize> = Vec::new();
    if let Ok(parent) = usize::try_from(batch.parents[segment]) {
        assert!(parent < segment);
        assert_eq!(batch.parents[parent], -1);
        tokens.extend(bounds(parent));
    }
    tokens.extend(bounds(segment).start..=row);
    let positions: Vec<usize> =
        tokens.iter().map(|&token| to_usize(batch.position_ids[token])).collect();
    assert_eq!(positions, (0..tokens.len()).collect::<Vec<_>>());
    tokens.into_iter().map(|token| batch.input_ids[token]).collect()
}

#[test]
fn random_batches_predict_each_target_from_what_comes_before() {
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let pairs = random_pairs(&mut random, 20);
        let folder = Folder::new();
        let spool = write_spool(folder.path(), &pairs);
        // any order, siblings apart or adjacent, an entry even twice
        let entries: Vec<usize> = (0..random.within(1..30)).map(|_| random.below(20)).collect();
        check_batch(&spool, &pairs, &entries);
    }
}

#[test]
fn a_known_batch() {
    let pairs = [(vec![5, 6], vec![7, 8]), (vec![9], vec![1]), (vec![5, 6], vec![4, 3, 2])];
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &pairs);
    let batch = check_batch(&spool, &pairs, &[0, 1, 2]);
    assert_eq!(batch.input_ids[..6], [5, 6, 7, 4, 3, 9]);
    assert_eq!(batch.position_ids[..8], [0, 1, 2, 2, 3, 0, 0, 1]);
    assert_eq!(batch.cu_seqlens, [0, 2, 3, 5, 6, 64]);
    assert_eq!(batch.parents, [-1, 0, 0, -1, -1]);
    assert_eq!(batch.entry_rows, [0, 2, 3, 6]);
    assert_eq!(batch.rows[..6], [1, 2, 5, 1, 3, 4]);
    assert_eq!(batch.targets[..6], [7, 8, 1, 4, 3, 2]);
}

#[test]
fn full_tokens_need_no_dummy() {
    let pairs = [(vec![1; 60], vec![2; 5])];
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &pairs);
    let batch = check_batch(&spool, &pairs, &[0]);
    assert_eq!(batch.parents, [-1, 0]);
}

/// Contexts of their own and lengths like those of questions and answers.
fn question_pairs(count: usize) -> Vec<Pair> {
    let mut random = Random::new(3);
    let mut pair = |number: usize| {
        let context = (0..random.within(30..90)).map(|_| i32::try_from(number).unwrap()).collect();
        let long = random.within(40..110) + random.below(100) + random.below(100);
        (context, vec![1; long])
    };
    (0..count).map(&mut pair).collect()
}

#[test]
fn batches_hold_units_of_similar_length_and_come_to_one_size() {
    let pairs = question_pairs(3000);
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &pairs);
    let everything: Vec<usize> = (0..pairs.len()).collect();
    let plan = plan_batches(&spool, &everything, 4096).unwrap();
    let length = |entry: usize| pairs[entry].0.len() + pairs[entry].1.len() - 1;
    let mut left: Vec<usize> = everything.iter().map(|&entry| length(entry)).collect();
    left.sort_unstable();
    let (mut full, mut alike) = (0, 0);
    for batch in 0..plan.num_batches() {
        let entries = plan.batch_entries(batch).unwrap();
        full += usize::from(count_tokens(&pairs, entries).next_multiple_of(MULTIPLE) == 4096);
        let mut lengths: Vec<usize> = entries.iter().map(|&entry| length(entry)).collect();
        lengths.sort_unstable();
        // Of all units that are left it holds the longest, but for those that fill it up.
        let longest = &left[left.len() - lengths.len()..];
        let (mut same, mut at) = (0, lengths.len());
        for &wanted in longest.iter().rev() {
            at -= usize::from(at > 0 && lengths[at - 1] > wanted);
            if at > 0 && lengths[at - 1] == wanted {
                (same, at) = (same + 1, at - 1);
            }
        }
        alike += same;
        for unit in lengths {
            left.remove(left.binary_search(&unit).unwrap());
        }
    }
    assert!(6 * alike >= 5 * pairs.len(), "{alike} of {} are where they belong", pairs.len());
    assert!(full + 2 >= plan.num_batches(), "{full} of {} are full", plan.num_batches());
}

#[test]
fn padding_stays_within_the_budget() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let pairs = random_pairs(&mut random, 50);
        let folder = Folder::new();
        let spool = write_spool(folder.path(), &pairs);
        let everything: Vec<usize> = (0..50).collect();
        let max_tokens = random.within(64..400);
        let plan = plan_batches(&spool, &everything, max_tokens).unwrap();
        for batch in 0..plan.num_batches() {
            let entries = plan.batch_entries(batch).unwrap();
            let tokens = pack_batch(&spool, entries).unwrap().input_ids.len();
            assert!(tokens <= max_tokens || entries.len() == 1, "{tokens} of {max_tokens}");
        }
    }
}
