//! Python's view of the records path: lines, the encoder of records, what it made of them.

use std::sync::Arc;

use numpy::{IntoPyArray, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyDict;

use super::{Ids, LineRow, Tokenizer, borrowed, copied, detached, to_row};
use crate::conversation::Role;
use crate::fields::{Field, Fields, Form};
use crate::lines;
use crate::records::{self, Settings};
use crate::template::{Content, Guard, Piece, Template, Test};

#[pyclass(frozen, module = "fam_engine._rust_tokenize")]
pub(super) struct LineChunk {
    pub(super) chunk: lines::Chunk,
}

#[pymethods]
impl LineChunk {
    #[staticmethod]
    fn from_bytes(py: Python<'_>, text: Vec<u8>) -> PyResult<Self> {
        Ok(Self { chunk: detached(py, || lines::Chunk::from_bytes(text))? })
    }

    fn __len__(&self) -> usize {
        self.chunk.len()
    }

    fn row(&self, index: usize) -> PyResult<LineRow> {
        if index >= self.chunk.len() {
            let count = self.chunk.len();
            return Err(PyValueError::new_err(format!(
                "`index` is {index}, expected below {count}"
            )));
        }
        Ok(to_row(self.chunk.line(index)))
    }
}

#[derive(FromPyObject)]
enum PieceArgument {
    Literal(String),
    Content(usize, bool),
}

type GuardArgument = (usize, bool, String, String);
type TemplateArgument = (Vec<PieceArgument>, Vec<GuardArgument>);

fn to_template((pieces, guards): TemplateArgument) -> PyResult<Template> {
    let pieces = pieces.into_iter().map(|piece| match piece {
        PieceArgument::Literal(text) => Piece::Literal(text),
        PieceArgument::Content(turn, trimmed) => Piece::Content(Content { turn, trimmed }),
    });
    Ok(Template {
        pieces: pieces.collect(),
        guards: guards.into_iter().map(to_guard).collect::<PyResult<_>>()?,
    })
}

fn to_guard((turn, trimmed, name, wanted): GuardArgument) -> PyResult<Guard> {
    let test = match name.as_str() {
        "contains" => Test::Contains,
        "startswith" => Test::StartsWith,
        "endswith" => Test::EndsWith,
        "equals" => Test::Equals,
        other => return Err(unknown("test", other)),
    };
    Ok(Guard { content: Content { turn, trimmed }, test, text: wanted })
}

fn unknown(what: &str, name: &str) -> PyErr {
    PyValueError::new_err(format!("found the {what} `{name}`, expected one that is listed"))
}

fn to_roles(names: &[String]) -> PyResult<Vec<Role>> {
    let role = |name: &String| Role::from_name(name).ok_or_else(|| unknown("role", name));
    names.iter().map(role).collect()
}

fn to_form(name: &str) -> PyResult<Form> {
    Ok(match name {
        "turns" => Form::Turns,
        "turns and answer" => Form::TurnsAndAnswer,
        "prompt" => Form::Prompt,
        "question" => Form::Question,
        "instruction" => Form::Instruction,
        other => return Err(unknown("form", other)),
    })
}

fn to_field(name: &str) -> PyResult<Field> {
    Ok(match name {
        "prompt" => Field::Prompt,
        "input" => Field::Input,
        "response" => Field::Response,
        "id" => Field::Id,
        "source" => Field::Source,
        "group" => Field::Group,
        "correct" => Field::Correct,
        "checked" => Field::Checked,
        "history" => Field::History,
        "handed" => Field::Handed,
        other => return Err(unknown("field", other)),
    })
}

#[pyclass(module = "fam_engine._rust_tokenize")]
pub(super) struct RecordEncoder {
    encoder: records::RecordEncoder,
}

#[pymethods]
impl RecordEncoder {
    #[new]
    #[pyo3(signature = (
        tokenizer, *, bos_id, end_of_turn_ids, has_template, joint, parse_special, max_length
    ))]
    #[allow(clippy::too_many_arguments)] // settings, each by its name
    fn new(
        py: Python<'_>,
        tokenizer: &Tokenizer,
        bos_id: Option<i32>,
        end_of_turn_ids: PyReadonlyArray1<'_, i32>,
        has_template: bool,
        joint: bool,
        parse_special: bool,
        max_length: usize,
    ) -> PyResult<Self> {
        let settings = Settings {
            bos: bos_id,
            end_of_turn: copied("end_of_turn_ids", &end_of_turn_ids)?,
            has_template,
            joint,
            parse_special,
            max_length,
        };
        let encoder = Arc::clone(&tokenizer.encoder);
        let encoder = detached(py, || records::RecordEncoder::new(encoder, settings))?;
        Ok(Self { encoder })
    }

    fn add_shape(
        &mut self,
        py: Python<'_>,
        roles: Vec<String>,
        context: TemplateArgument,
        whole: TemplateArgument,
    ) -> PyResult<()> {
        let roles = to_roles(&roles)?;
        let (context, whole) = (to_template(context)?, to_template(whole)?);
        detached(py, || self.encoder.add_shape(roles, context, whole))
    }

    fn remove_shape(&mut self, roles: Vec<String>) -> PyResult<()> {
        self.encoder.remove_shape(&to_roles(&roles)?);
        Ok(())
    }

    #[pyo3(signature = (lines, *, form, columns, num_threads=None))]
    fn encode(
        &self,
        py: Python<'_>,
        lines: &LineChunk,
        form: &str,
        columns: Vec<(String, String)>,
        num_threads: Option<usize>,
    ) -> PyResult<RecordBatch> {
        let column = |(name, field): (String, String)| Ok((name, to_field(&field)?));
        let columns = columns.into_iter().map(column).collect::<PyResult<_>>()?;
        let fields = Fields { form: to_form(form)?, columns };
        let records = detached(py, || self.encoder.encode(&lines.chunk, &fields, num_threads))?;
        Ok(RecordBatch { records })
    }
}

#[pyclass(frozen, module = "fam_engine._rust_tokenize")]
pub(super) struct RecordBatch {
    pub(super) records: records::Records,
}

#[pymethods]
impl RecordBatch {
    fn __len__(&self) -> usize {
        self.records.len()
    }

    fn others(&self) -> Vec<usize> {
        self.records.others.clone()
    }

    fn ids<'py>(&self, py: Python<'py>, number: usize) -> PyResult<(Ids<'py>, Ids<'py>)> {
        let records = &self.records;
        if number >= records.len() {
            let count = records.len();
            return Err(PyValueError::new_err(format!(
                "`number` is {number}, expected below {count}"
            )));
        }
        let context = records.context_ids[records.context_range(number)].to_vec();
        let targets = records.target_ids[records.target_range(number)].to_vec();
        Ok((context.into_pyarray(py), targets.into_pyarray(py)))
    }

    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let records = &self.records;
        let each = 0..records.len();
        let labels = records.labels.as_slice();
        let text = |label: fn(&crate::fields::Labels) -> Option<&str>| {
            labels.iter().map(label).collect::<Vec<_>>()
        };
        let columns = PyDict::new(py);
        columns.set_item("line", &records.lines)?;
        columns.set_item("id", text(|labels| labels.id.as_deref()))?;
        columns.set_item("source", text(|labels| labels.source.as_deref()))?;
        columns.set_item("group", text(|labels| labels.group.as_deref()))?;
        columns.set_item("correct", labels.iter().map(|one| one.correct).collect::<Vec<_>>())?;
        columns.set_item("num_bytes", &records.num_bytes)?;
        columns.set_item("text_digest", &records.digests)?;
        let num_eot = usize::from(records.num_eot);
        let context = each.clone().map(|number| records.context_range(number).len());
        columns.set_item("num_prompt_tokens", context.collect::<Vec<_>>())?;
        let response = each.map(|number| records.target_range(number).len() - num_eot);
        columns.set_item("num_response_tokens", response.collect::<Vec<_>>())?;
        let flags = records.flags.iter().map(|&bits| u32::from(bits)); // a list, not bytes
        columns.set_item("flags", flags.collect::<Vec<_>>())?;
        Ok(columns)
    }
}

#[pyfunction]
pub(super) fn context_name(ids: PyReadonlyArray1<'_, i32>) -> PyResult<String> {
    Ok(records::context_name(borrowed("ids", &ids)?))
}

#[pyfunction]
pub(super) fn texts_digest(texts: Vec<PyBackedStr>) -> i64 {
    records::texts_digest(texts.iter().map(|text| &**text))
}
