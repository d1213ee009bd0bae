//! Python's view of the crate; only this file and its parts in `py/` name pyo3.
//!
//! Every method copies its arguments into Rust vectors (but for the matrices of
//! `linear_logprob_bf16`), releases the interpreter lock, calls one function of the core inside
//! [`guard`], and hands the vectors that come back to numpy without copying them. Signatures and documentation for Python live in
//! `engine/fam_engine/_rust_tokenize.pyi`.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyTuple};

use crate::batch;
use crate::bins::{self, Mode};
use crate::encoder::{self, EncodeOptions, Encoder};
use crate::error::{Error, Result, guard};
use crate::hugging_face::HuggingFaceEncoder;
use crate::linear_logprob::{self, Matrices};
use crate::lines::{Line, LineReader};
use crate::native;
use crate::packs;
use crate::plan;
use crate::spool;
use crate::spool_writer::{self, Columns};
use crate::verify::{self, Mismatch};

mod records;

mod exceptions {
    //! `create_exception` makes public items that need no documentation of their own.
    #![allow(missing_docs)]
    use pyo3::create_exception;
    use pyo3::exceptions::{PyRuntimeError, PyValueError};

    create_exception!(
        fam_engine._rust_tokenize,
        TokenizerError,
        PyValueError,
        "A tokenizer definition, a text or an id that cannot be used."
    );
    create_exception!(
        fam_engine._rust_tokenize,
        SpoolError,
        PyValueError,
        "A spool that is unfinished, damaged or of another version."
    );
    create_exception!(
        fam_engine._rust_tokenize,
        RustPanicError,
        PyRuntimeError,
        "A bug in the extension or in one of its dependencies."
    );
}
use exceptions::{RustPanicError, SpoolError, TokenizerError};

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Argument(_) => PyValueError::new_err(text),
            Error::Tokenizer(_) => TokenizerError::new_err(text),
            Error::Spool(_) => SpoolError::new_err(text),
            Error::Panic(_) => RustPanicError::new_err(text),
            Error::Interrupted(raised) => {
                raised.downcast().map_or_else(|_| PyRuntimeError::new_err(text), |raised| *raised)
            }
            Error::Io { path, source } => match source.raw_os_error() {
                // With a number OSError picks its subclass, such as FileNotFoundError.
                Some(number) => {
                    let reason = source.to_string();
                    let reason = reason.split(" (os error").next().unwrap_or_default().to_owned();
                    PyOSError::new_err((number, reason, path))
                }
                // What a file object of Python raised goes on as it came.
                None => source.downcast().unwrap_or_else(|_| PyOSError::new_err(text)),
            },
        }
    }
}

/// Runs `work` without the interpreter lock.
fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| guard(work)).map_err(PyErr::from)
}

/// Lets Python answer signals, which it does in its main thread alone. For what can last longer than
/// anyone would wait after Ctrl-C: what a handler raises is to end it.
#[allow(clippy::redundant_closure_for_method_calls)] // the method alone is not general enough
fn answer_signals() -> PyResult<()> {
    Python::attach(|py| py.check_signals())
}

fn check_signals() -> Result<()> {
    answer_signals().map_err(|raised| Error::Interrupted(raised.into()))
}

fn borrowed<'a, T: Element>(name: &str, array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| {
        PyValueError::new_err(format!("`{name}` has gaps, expected a contiguous array"))
    })
}

fn copied<T: Element + Copy>(name: &str, array: &PyReadonlyArray1<'_, T>) -> PyResult<Vec<T>> {
    Ok(borrowed(name, array)?.to_vec())
}

/// Numbers of entries, items or ids as they come from Python: never below 0.
fn to_numbers<T: Copy + Into<i64>, U: TryFrom<i64>>(name: &str, values: &[T]) -> PyResult<Vec<U>> {
    let convert = |(at, &value): (usize, &T)| {
        let value: i64 = value.into();
        U::try_from(value).map_err(|_| {
            PyValueError::new_err(format!("`{name}[{at}]` is {value}, which is out of range"))
        })
    };
    values.iter().enumerate().map(convert).collect()
}

/// Offsets and entry numbers are counts of things in memory or on disk, far below 2^63.
fn to_i64(values: &[usize]) -> Vec<i64> {
    values.iter().map(|&value| i64::try_from(value).unwrap_or(i64::MAX)).collect()
}

/// Ids from a list or an integer array.
fn to_ids(values: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if let Ok(array) = values.extract::<PyReadonlyArray1<'_, i32>>() {
        return to_numbers("ids", &copied("ids", &array)?);
    }
    if let Ok(array) = values.extract::<PyReadonlyArray1<'_, i64>>() {
        return to_numbers("ids", &copied("ids", &array)?);
    }
    let list: Vec<i64> = values.extract().map_err(|_| {
        PyTypeError::new_err("`ids` must be a sequence of int or an int32 or int64 array")
    })?;
    to_numbers("ids", &list)
}

/// `num_eot` may be an uint8 or an int32 column.
fn to_bytes(values: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(array) = values.extract::<PyReadonlyArray1<'_, u8>>() {
        return copied("num_eot", &array);
    }
    let array: PyReadonlyArray1<'_, i32> = values
        .extract()
        .map_err(|_| PyTypeError::new_err("`num_eot` must be an uint8 or int32 array"))?;
    to_numbers("num_eot", &copied("num_eot", &array)?)
}

type Ids<'py> = Bound<'py, PyArray1<i32>>;
type Numbers<'py> = Bound<'py, PyArray1<i64>>;

#[pyclass(frozen, module = "fam_engine._rust_tokenize")]
struct Tokenizer {
    encoder: Arc<dyn Encoder>,
    path: PathBuf,
}

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    fn from_file(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let encoder = detached(py, || native::load(&path))?;
        Ok(Self { encoder, path })
    }

    #[staticmethod]
    fn native_from_file(py: Python<'_>, path: PathBuf) -> PyResult<Option<Self>> {
        let encoder = detached(py, || native::load_native(&path))?;
        Ok(encoder.map(|encoder| Self { encoder: Arc::new(encoder), path }))
    }

    #[getter]
    fn engine(&self) -> &'static str {
        self.encoder.engine()
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.encoder.vocab_size()
    }

    #[pyo3(signature = (
        texts, *, num_threads=None, add_special_tokens=false, parse_special=true, continuation=false
    ))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<PyBackedStr>,
        num_threads: Option<usize>,
        add_special_tokens: bool,
        parse_special: bool,
        continuation: bool,
    ) -> PyResult<(Ids<'py>, Numbers<'py>)> {
        let options = EncodeOptions { add_special_tokens, parse_special, continuation };
        let encoder = self.encoder.as_ref();
        let ragged = detached(py, || encoder::encode_batch(encoder, &texts, options, num_threads))?;
        Ok((ragged.ids.into_pyarray(py), ragged.offsets.into_pyarray(py)))
    }

    #[pyo3(signature = (texts, *, num_threads=None))]
    fn verify<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<PyBackedStr>,
        num_threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let encoder = self.encoder.as_ref();
        let found = detached(py, || {
            let reference = HuggingFaceEncoder::from_file(&self.path)?;
            verify::verify(encoder, &reference, &texts, num_threads, &check_signals)
        })?;
        let described = found.mismatches.into_iter().map(|mismatch| described(py, mismatch));
        let verification = PyDict::new(py);
        verification.set_item("num_compared", found.num_compared)?;
        verification.set_item("num_mismatched", found.num_mismatched)?;
        verification.set_item("mismatches", described.collect::<PyResult<Vec<_>>>()?)?;
        Ok(verification)
    }

    #[pyo3(signature = (ids, *, skip_special_tokens=false))]
    fn decode(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        skip_special_tokens: bool,
    ) -> PyResult<String> {
        let ids = to_ids(ids)?;
        let encoder = self.encoder.as_ref();
        detached(py, || encoder.decode(&ids, skip_special_tokens))
    }

    #[pyo3(signature = (token, /))]
    fn token_to_id(&self, token: &str) -> Option<i32> {
        self.encoder.token_to_id(token)
    }

    #[pyo3(signature = (token_id, /))]
    fn id_to_token(&self, token_id: i64) -> Option<String> {
        self.encoder.id_to_token(u32::try_from(token_id).ok()?)
    }

    fn special_tokens(&self) -> Vec<(String, i32)> {
        let tokens = self.encoder.added_tokens().into_iter();
        tokens.filter(|token| token.special).map(|token| (token.content, token.id)).collect()
    }

    fn added_tokens(&self) -> Vec<(String, i32)> {
        let tokens = self.encoder.added_tokens().into_iter();
        tokens.map(|token| (token.content, token.id)).collect()
    }
}

fn described(py: Python<'_>, mismatch: Mismatch) -> PyResult<Bound<'_, PyDict>> {
    let described = PyDict::new(py);
    described.set_item("text_index", mismatch.text_index)?;
    described.set_item("text", mismatch.text)?;
    described.set_item("parse_special", mismatch.options.parse_special)?;
    described.set_item("continuation", mismatch.options.continuation)?;
    described.set_item("ids", mismatch.ids.ok())?;
    described.set_item("expected_ids", mismatch.expected.ok())?;
    Ok(described)
}

/// A file object of Python; the interpreter lock is taken for each read.
struct PythonFile(Py<PyAny>);

impl Read for PythonFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Python::attach(|py| {
            let read = self.0.call_method1(py, "read", (buffer.len(),))?;
            let bytes: &[u8] = read.extract(py)?;
            let Some(place) = buffer.get_mut(..bytes.len()) else {
                return Err(PyValueError::new_err("`file.read` gave more bytes than asked for"));
            };
            place.copy_from_slice(bytes);
            Ok(bytes.len())
        })
        .map_err(io::Error::from)
    }
}

/// A file that asks for signals before each read: an endless line is one call of the reader.
struct InterruptibleFile(File);

impl Read for InterruptibleFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        answer_signals()?;
        self.0.read(buffer)
    }
}

#[pyclass(module = "fam_engine._rust_tokenize")]
struct JsonLinesReader {
    reader: LineReader,
}

type LineRow = (u64, u64, Option<String>, Option<&'static str>, Option<String>);

fn to_row(line: Line) -> LineRow {
    match line.text {
        Ok(text) => (line.number, line.offset, Some(text), None, None),
        Err(problem) => (line.number, line.offset, None, Some(problem.code), Some(problem.reason)),
    }
}

#[pymethods]
impl JsonLinesReader {
    #[new]
    #[pyo3(signature = (path, *, max_line_bytes=67_108_864, file=None))]
    fn new(path: PathBuf, max_line_bytes: usize, file: Option<Py<PyAny>>) -> PyResult<Self> {
        let reader = match file {
            None => {
                let file = InterruptibleFile(File::open(&path).map_err(Error::io(&path))?);
                LineReader::from_reader(&path, file, max_line_bytes)?
            }
            Some(file) => LineReader::from_reader(&path, PythonFile(file), max_line_bytes)?,
        };
        Ok(Self { reader })
    }

    fn read_batch(&mut self, py: Python<'_>, max_lines: usize) -> PyResult<Vec<LineRow>> {
        let lines = detached(py, || self.reader.read_batch(max_lines))?;
        Ok(lines.into_iter().map(to_row).collect())
    }

    fn read_chunk(&mut self, py: Python<'_>, max_lines: usize) -> PyResult<records::LineChunk> {
        Ok(records::LineChunk { chunk: detached(py, || self.reader.read_chunk(max_lines))? })
    }

    #[getter]
    fn bytes_read(&self) -> u64 {
        self.reader.bytes_read()
    }
}

#[pyclass(module = "fam_engine._rust_tokenize")]
struct SpoolWriter {
    writer: spool_writer::SpoolWriter,
}

#[pymethods]
impl SpoolWriter {
    #[new]
    #[pyo3(signature = (folder, *, durable = true))]
    fn new(py: Python<'_>, folder: PathBuf, durable: bool) -> PyResult<Self> {
        let create = if durable {
            spool_writer::SpoolWriter::create
        } else {
            spool_writer::SpoolWriter::create_scratch
        };
        Ok(Self { writer: detached(py, || create(&folder))? })
    }

    #[allow(clippy::too_many_arguments)] // a batch of entries is seven columns
    fn append(
        &mut self,
        py: Python<'_>,
        context_ids: PyReadonlyArray1<'_, i32>,
        context_offsets: PyReadonlyArray1<'_, i64>,
        target_ids: PyReadonlyArray1<'_, i32>,
        target_offsets: PyReadonlyArray1<'_, i64>,
        num_eot: &Bound<'_, PyAny>,
        variant: PyReadonlyArray1<'_, u8>,
        record: PyReadonlyArray1<'_, u32>,
    ) -> PyResult<()> {
        let context_ids = copied("context_ids", &context_ids)?;
        let context_offsets = copied("context_offsets", &context_offsets)?;
        let target_ids = copied("target_ids", &target_ids)?;
        let target_offsets = copied("target_offsets", &target_offsets)?;
        let num_eot = to_bytes(num_eot)?;
        let variant = copied("variant", &variant)?;
        let record = copied("record", &record)?;
        detached(py, || {
            self.writer.append(&Columns {
                context_ids: &context_ids,
                context_offsets: &context_offsets,
                target_ids: &target_ids,
                target_offsets: &target_offsets,
                num_eot: &num_eot,
                variant: &variant,
                record: &record,
            })
        })
    }

    #[pyo3(signature = (records, start, stop, *, variant, record))]
    fn append_records(
        &mut self,
        py: Python<'_>,
        records: &records::RecordBatch,
        start: usize,
        stop: usize,
        variant: u8,
        record: u32,
    ) -> PyResult<()> {
        let records = &records.records;
        detached(py, || self.writer.append_records(records, start..stop, record, variant))
    }

    fn finish(&mut self, py: Python<'_>) -> PyResult<()> {
        detached(py, || self.writer.finish())
    }
}

#[pyclass(frozen, module = "fam_engine._rust_tokenize")]
struct Spool {
    spool: spool::Spool,
}

#[pymethods]
impl Spool {
    #[staticmethod]
    fn open(py: Python<'_>, folder: PathBuf) -> PyResult<Self> {
        Ok(Self { spool: detached(py, || spool::Spool::open(&folder))? })
    }

    fn __len__(&self) -> usize {
        self.spool.entries().len()
    }

    fn index<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let entries = self.spool.entries();
        let columns = PyDict::new(py);
        columns.set_item("context_len", column(py, entries, |entry| entry.context_len))?;
        columns.set_item("target_len", column(py, entries, |entry| entry.target_len))?;
        columns.set_item("num_eot", column(py, entries, |entry| entry.num_eot))?;
        columns.set_item("variant", column(py, entries, |entry| entry.variant))?;
        columns.set_item("record", column(py, entries, |entry| entry.record))?;
        columns.set_item("context_hash", column(py, entries, |entry| entry.context_hash))?;
        Ok(columns)
    }

    fn read<'py>(&self, py: Python<'py>, entry: usize) -> PyResult<(Ids<'py>, Ids<'py>)> {
        let (context, targets) = detached(py, || self.spool.read(entry))?;
        Ok((context.into_pyarray(py), targets.into_pyarray(py)))
    }
}

fn column<'py, T: Element>(
    py: Python<'py>,
    entries: &[spool::Entry],
    field: impl Fn(&spool::Entry) -> T,
) -> Bound<'py, PyArray1<T>> {
    entries.iter().map(field).collect::<Vec<T>>().into_pyarray(py)
}

#[pyclass(frozen, module = "fam_engine._rust_tokenize")]
struct Plan {
    plan: plan::Plan,
}

#[pymethods]
impl Plan {
    #[getter]
    fn num_batches(&self) -> usize {
        self.plan.num_batches()
    }

    #[getter]
    fn total_tokens(&self) -> usize {
        self.plan.total_tokens()
    }

    #[getter]
    fn tokens_without_sharing(&self) -> usize {
        self.plan.tokens_without_sharing()
    }

    fn batch_entries<'py>(&self, py: Python<'py>, batch: usize) -> PyResult<Numbers<'py>> {
        Ok(to_i64(self.plan.batch_entries(batch)?).into_pyarray(py))
    }
}

#[pyfunction]
#[pyo3(signature = (spool, entries, *, max_tokens))]
fn plan_batches(
    py: Python<'_>,
    spool: &Spool,
    entries: PyReadonlyArray1<'_, i64>,
    max_tokens: usize,
) -> PyResult<Plan> {
    let entries = to_numbers("entries", &copied("entries", &entries)?)?;
    let plan =
        detached(py, || plan::plan_batches(&spool.spool, &entries, max_tokens, &check_signals))?;
    Ok(Plan { plan })
}

/// Items a window of windowed packing.
const WINDOW: usize = 10_000;

fn to_mode(mode: &str, window: Option<usize>) -> PyResult<Mode> {
    match (mode, window) {
        ("global", None) => Ok(Mode::Global),
        ("windowed", window) => Ok(Mode::Windowed(window.unwrap_or(WINDOW))),
        ("in-order", None) => Ok(Mode::InOrder),
        ("global" | "in-order", Some(_)) => {
            Err(PyValueError::new_err(format!("`window` goes with mode `windowed`, not `{mode}`")))
        }
        _ => Err(PyValueError::new_err(format!(
            "`mode` is `{mode}`, expected `global`, `windowed` or `in-order`"
        ))),
    }
}

#[pyfunction]
#[pyo3(signature = (lengths, capacity, *, mode="global", window=None))]
fn pack_lengths<'py>(
    py: Python<'py>,
    lengths: PyReadonlyArray1<'py, i64>,
    capacity: usize,
    mode: &str,
    window: Option<usize>,
) -> PyResult<Ids<'py>> {
    let mode = to_mode(mode, window)?;
    let lengths: Vec<usize> = to_numbers("lengths", &copied("lengths", &lengths)?)?;
    let bins = detached(py, || {
        let bins = bins::pack(&lengths, capacity, mode)?;
        let signed = bins.into_iter().map(i32::try_from).collect::<std::result::Result<_, _>>();
        signed.map_err(|_| Error::Argument("more bins than 32 bits can count".to_owned()))
    })?;
    Ok(Vec::into_pyarray(bins, py))
}

#[pyfunction]
fn pack_batch<'py>(
    py: Python<'py>,
    spool: &Spool,
    entries: PyReadonlyArray1<'py, i64>,
) -> PyResult<Bound<'py, PyDict>> {
    let numbers = copied("entries", &entries)?;
    let entries: Vec<usize> = to_numbers("entries", &numbers)?;
    let batch = detached(py, || batch::pack_batch(&spool.spool, &entries))?;
    let arrays = PyDict::new(py);
    arrays.set_item("input_ids", batch.input_ids.into_pyarray(py))?;
    arrays.set_item("position_ids", batch.position_ids.into_pyarray(py))?;
    arrays.set_item("cu_seqlens", batch.cu_seqlens.into_pyarray(py))?;
    arrays.set_item("parents", batch.parents.into_pyarray(py))?;
    arrays.set_item("rows", batch.rows.into_pyarray(py))?;
    arrays.set_item("targets", batch.targets.into_pyarray(py))?;
    arrays.set_item("num_rows", batch.num_rows)?;
    arrays.set_item("entry_rows", batch.entry_rows.into_pyarray(py))?;
    arrays.set_item("entries", numbers.into_pyarray(py))?;
    Ok(arrays)
}

#[pyfunction]
#[pyo3(signature = (spool, entries, *, capacity))]
fn pack_sequences<'py>(
    py: Python<'py>,
    spool: &Spool,
    entries: PyReadonlyArray1<'py, i64>,
    capacity: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let entries: Vec<usize> = to_numbers("entries", &copied("entries", &entries)?)?;
    let packs = detached(py, || packs::pack_sequences(&spool.spool, &entries, capacity))?;
    let arrays = PyDict::new(py);
    arrays.set_item("input_ids", packs.input_ids.into_pyarray(py))?;
    arrays.set_item("position_ids", packs.position_ids.into_pyarray(py))?;
    arrays.set_item("response_mask", packs.response_mask.into_pyarray(py))?;
    arrays.set_item("cu_seqlens", packs.cu_seqlens.into_pyarray(py))?;
    arrays.set_item("pack_starts", packs.pack_starts.into_pyarray(py))?;
    arrays.set_item("entries", packs.entries.into_pyarray(py))?;
    Ok(arrays)
}

#[pyfunction]
fn supports_bf16_products() -> bool {
    linear_logprob::is_supported()
}

/// The one function that copies no argument: a head has hundreds of megabytes.
#[pyfunction]
#[pyo3(signature = (hidden, head, targets, *, width, num_threads))]
fn linear_logprob_bf16<'py>(
    py: Python<'py>,
    hidden: PyReadonlyArray1<'py, i16>,
    head: PyReadonlyArray1<'py, i16>,
    targets: PyReadonlyArray1<'py, i64>,
    width: usize,
    num_threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let matrices =
        Matrices { hidden: borrowed("hidden", &hidden)?, head: borrowed("head", &head)?, width };
    let targets: Vec<u32> = to_numbers("targets", borrowed("targets", &targets)?)?;
    let facts = detached(py, || linear_logprob::linear_logprob(matrices, &targets, num_threads))?;
    (
        facts.logprobs.into_pyarray(py),
        facts.ranks.into_pyarray(py),
        facts.entropies.into_pyarray(py),
        facts.margins.into_pyarray(py),
    )
        .into_pyobject(py)
}

#[pymodule]
#[pyo3(name = "_rust_tokenize")]
fn rust_tokenize(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("TokenizerError", py.get_type::<TokenizerError>())?;
    module.add("SpoolError", py.get_type::<SpoolError>())?;
    module.add("RustPanicError", py.get_type::<RustPanicError>())?;
    module.add_class::<Tokenizer>()?;
    module.add_class::<JsonLinesReader>()?;
    module.add_class::<records::LineChunk>()?;
    module.add_class::<records::RecordEncoder>()?;
    module.add_class::<records::RecordBatch>()?;
    module.add_class::<SpoolWriter>()?;
    module.add_class::<Spool>()?;
    module.add_class::<Plan>()?;
    module.add_function(wrap_pyfunction!(records::context_name, module)?)?;
    module.add_function(wrap_pyfunction!(records::texts_digest, module)?)?;
    module.add_function(wrap_pyfunction!(plan_batches, module)?)?;
    module.add_function(wrap_pyfunction!(pack_lengths, module)?)?;
    module.add_function(wrap_pyfunction!(pack_batch, module)?)?;
    module.add_function(wrap_pyfunction!(pack_sequences, module)?)?;
    module.add_function(wrap_pyfunction!(supports_bf16_products, module)?)?;
    module.add_function(wrap_pyfunction!(linear_logprob_bf16, module)?)?;
    Ok(())
}
