//! A spool gives back what went in, and notices every kind of damage.

use std::fs;
use std::path::Path;

use rust_tokenize::error::Error;
use rust_tokenize::spool::{ENTRY_BYTES, Spool};
use rust_tokenize::spool_writer::{Columns, SpoolWriter};

use crate::random::{Folder, Random};

/// Context ids and target ids of one entry.
pub type Pair = (Vec<i32>, Vec<i32>);

struct Flat {
    ids: Vec<i32>,
    offsets: Vec<i64>,
}

fn flatten<'a>(lists: impl Iterator<Item = &'a Vec<i32>>) -> Flat {
    let mut flat = Flat { ids: Vec::new(), offsets: vec![0] };
    for list in lists {
        flat.ids.extend(list);
        flat.offsets.push(flat.ids.len().try_into().unwrap());
    }
    flat
}

fn append(writer: &mut SpoolWriter, pairs: &[Pair], first_record: u32) {
    let contexts = flatten(pairs.iter().map(|pair| &pair.0));
    let targets = flatten(pairs.iter().map(|pair| &pair.1));
    let record: Vec<u32> = (first_record..).take(pairs.len()).collect();
    let num_eot: Vec<u8> = pairs.iter().map(|pair| u8::from(!pair.1.is_empty())).collect();
    let columns = Columns {
        context_ids: &contexts.ids,
        context_offsets: &contexts.offsets,
        target_ids: &targets.ids,
        target_offsets: &targets.offsets,
        num_eot: &num_eot,
        variant: &vec![3; pairs.len()],
        record: &record,
    };
    writer.append(&columns).unwrap();
}

/// Writes a finished spool of these entries, in two calls.
pub fn write_spool(folder: &Path, pairs: &[Pair]) -> Spool {
    let mut writer = SpoolWriter::create(folder).unwrap();
    let middle = pairs.len() / 2;
    append(&mut writer, &pairs[..middle], 0);
    append(&mut writer, &pairs[middle..], middle.try_into().unwrap());
    writer.finish().unwrap();
    Spool::open(folder).unwrap()
}

fn some_pairs() -> Vec<Pair> {
    vec![(vec![1, 2], vec![3, 4, 5]), (vec![1, 2], vec![]), (vec![i32::MAX, 0], vec![7])]
}

#[test]
fn entries_come_back() {
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &some_pairs());
    for (number, pair) in some_pairs().into_iter().enumerate() {
        assert_eq!(spool.context(number).unwrap(), pair.0);
        assert_eq!(spool.read(number).unwrap(), pair);
    }
    let entries = spool.entries();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[0].context_hash, entries[1].context_hash);
    assert_ne!(entries[0].context_hash, entries[2].context_hash);
    assert_eq!((entries[2].record, entries[2].num_eot, entries[2].variant), (2, 1, 3));
    assert_eq!((entries[0].response_tokens(), entries[1].response_tokens()), (2, 0));
    assert!(matches!(spool.read(3), Err(Error::Argument(_))));
    let index_bytes = fs::metadata(folder.path().join("index.bin")).unwrap().len();
    assert_eq!(index_bytes, 40 + 3 * ENTRY_BYTES as u64);
}

#[test]
fn an_empty_spool_is_a_spool() {
    let folder = Folder::new();
    assert!(write_spool(folder.path(), &[]).entries().is_empty());
}

#[test]
fn an_unfinished_spool_is_none() {
    let folder = Folder::new();
    let unfinished = |folder: &Folder| matches!(Spool::open(folder.path()), Err(Error::Spool(_)));
    assert!(unfinished(&folder));
    write_spool(folder.path(), &some_pairs());
    let mut writer = SpoolWriter::create(folder.path()).unwrap(); // begins anew: the old one is gone
    assert!(unfinished(&folder));
    append(&mut writer, &some_pairs(), 0);
    drop(writer);
    assert!(unfinished(&folder));
}

#[test]
fn a_scratch_spool_reads_like_a_durable_one() {
    let (folder, scratch) = (Folder::new(), Folder::new());
    let mut writer = SpoolWriter::create_scratch(scratch.path()).unwrap();
    append(&mut writer, &some_pairs(), 0);
    assert!(Spool::open(scratch.path()).is_err());
    writer.finish().unwrap();
    write_spool(folder.path(), &some_pairs());
    for name in ["data.bin", "index.bin"] {
        let read = |folder: &Folder| fs::read(folder.path().join(name)).unwrap();
        assert_eq!(read(&scratch), read(&folder), "{name}");
    }
}

#[test]
fn a_finished_writer_takes_no_more() {
    let folder = Folder::new();
    let mut writer = SpoolWriter::create(folder.path()).unwrap();
    writer.finish().unwrap();
    assert!(matches!(writer.finish(), Err(Error::Spool(_))));
}

#[test]
fn columns_that_disagree_are_refused_and_change_nothing() {
    let folder = Folder::new();
    let mut writer = SpoolWriter::create(folder.path()).unwrap();
    let good = Columns {
        context_ids: &[1, 2, 3],
        context_offsets: &[0, 1, 3],
        target_ids: &[4],
        target_offsets: &[0, 1, 1],
        num_eot: &[1, 0],
        variant: &[0, 0],
        record: &[0, 1],
    };
    let bad = [
        Columns { context_ids: &[1, 2, -3], ..good },
        Columns { target_ids: &[-1], ..good },
        Columns { context_offsets: &[0, 3, 1], ..good },
        Columns { context_offsets: &[0, 1, 2], ..good },
        Columns { context_offsets: &[1, 2, 3], ..good },
        Columns { context_offsets: &[0, 4, 3], ..good },
        Columns { context_offsets: &[0, -1, 3], ..good },
        Columns { context_offsets: &[], ..good },
        Columns { context_offsets: &[0, 0, 3], ..good }, // an empty context
        Columns { target_offsets: &[0, 1], ..good },
        Columns { num_eot: &[2, 0], ..good },
        Columns { num_eot: &[1], ..good },
        Columns { variant: &[0], ..good },
        Columns { record: &[0, 1, 2], ..good },
    ];
    for columns in bad {
        let refused = writer.append(&columns);
        assert!(matches!(refused, Err(Error::Argument(_))), "{columns:?}: {refused:?}");
    }
    writer.append(&good).unwrap();
    writer.finish().unwrap();
    assert_eq!(Spool::open(folder.path()).unwrap().read(1).unwrap(), (vec![2, 3], vec![]));
}

#[test]
fn every_changed_or_missing_byte_is_noticed() {
    let folder = Folder::new();
    write_spool(folder.path(), &some_pairs());
    for name in ["index.bin", "data.bin"] {
        let path = folder.path().join(name);
        let sound = fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            assert_damaged(folder.path(), &format!("{name}: byte {at} changed"));
            fs::write(&path, &sound[..at]).unwrap();
            assert_damaged(folder.path(), &format!("{name}: cut at {at}"));
        }
        fs::write(&path, [&sound[..], &[0]].concat()).unwrap();
        assert_damaged(folder.path(), &format!("{name}: one byte more"));
        fs::write(&path, &sound).unwrap();
    }
    assert!(Spool::open(folder.path()).is_ok());
}

fn assert_damaged(folder: &Path, what: &str) {
    let outcome = Spool::open(folder).and_then(|spool| {
        for number in 0..spool.entries().len() {
            spool.read(number)?;
        }
        Ok(())
    });
    assert!(matches!(outcome, Err(Error::Spool(_))), "{what}: {outcome:?}");
}

#[test]
fn a_file_that_shrinks_while_open_is_an_error() {
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &some_pairs());
    fs::File::options()
        .write(true)
        .open(folder.path().join("data.bin"))
        .unwrap()
        .set_len(10)
        .unwrap();
    assert!(matches!(spool.read(0), Err(Error::Spool(_))));
    let error = spool.read_to(&[2, 0, 1], &[0, 0, 0], &mut [0; 9]).unwrap_err();
    assert!(error.to_string().ends_with("ends inside entry 0"), "{error}");
}

#[test]
fn entries_go_where_they_are_wanted() {
    let pairs: Vec<Pair> = (0..300).map(|id| (vec![id; 400], vec![-id - 1 + 900])).collect();
    let folder = Folder::new();
    let spool = write_spool(folder.path(), &pairs); // of two reads, if they are neighbours
    for wanted in [vec![], (0..300).collect(), (0..300).rev().collect(), vec![299, 3, 3, 1, 298]] {
        let places: Vec<usize> = (0..wanted.len()).map(|number| number * 402 + 1).collect();
        let mut ids = vec![-7; wanted.len() * 402 + 1];
        spool.read_to(&wanted, &places, &mut ids).unwrap();
        let expected = wanted.iter().flat_map(|&number| {
            let (context, targets) = &pairs[number];
            [&context[..], &targets[..], &[-7]].concat()
        });
        assert_eq!(ids, std::iter::once(-7).chain(expected).collect::<Vec<_>>());
    }
    assert!(matches!(spool.read_to(&[300], &[0], &mut []), Err(Error::Argument(_))));
}

#[test]
fn damaged_entries_are_named_wherever_they_go() {
    let folder = Folder::new();
    write_spool(folder.path(), &some_pairs());
    let path = folder.path().join("data.bin");
    let sound = fs::read(&path).unwrap();
    for (byte, what) in [
        (5, "context ids of entry 0"),
        (9, "target ids of entry 0"),
        (30, "context ids of entry 2"),
    ] {
        let mut bytes = sound.clone();
        bytes[byte] ^= 1;
        fs::write(&path, bytes).unwrap();
        let spool = Spool::open(folder.path()).unwrap();
        let error = spool.read_to(&[2, 1, 0], &[7, 5, 0], &mut [0; 10]).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn random_spools_come_back() {
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let mut ids = |least| -> Vec<i32> {
            (0..random.within(least..20))
                .map(|_| random.below(1 << 31).try_into().unwrap())
                .collect()
        };
        let pairs: Vec<Pair> = (0..40).map(|_| (ids(1), ids(0))).collect();
        let folder = Folder::new();
        let spool = write_spool(folder.path(), &pairs);
        for (number, pair) in pairs.iter().enumerate() {
            assert_eq!(&spool.read(number).unwrap(), pair, "seed {seed}");
        }
    }
}
