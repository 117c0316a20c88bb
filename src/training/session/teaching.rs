//! A teacher beside its student: what of both is compared, in which order their classes lie, and how the teacher sees
//! the images.

use std::path::{Path, PathBuf};

use super::data::Data;
use crate::anatomy::class_factor;
use crate::axes::Typing;
use crate::data::{Correspondence, InputShape, InputTransform, Preprocess, PreprocessFlags, class_names};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::PREPROCESS;
use crate::onnx::Model;
use crate::progress::Listener;
use crate::training::{Loss, Term};

/// A model that the student learns from, before it is loaded.
pub struct Guide {
    /// Its file.
    pub path: PathBuf,
    /// The model.
    pub model: Model,
    /// The value that holds its classes, and where each of the student's lies there, where their order is another.
    pub classes: Option<(String, Vec<usize>)>,
}

/// Checks that student and teacher say things that can be compared, before anything is trained.
///
/// # Errors
/// [`ErrorKind::Usage`] where their classes or compared values differ in number; it names both files.
pub(super) fn check([student, teacher]: [&Path; 2], own: &Typing, other: &Typing, loss: &Loss) -> Result<()> {
    for (_, term) in &loss.terms {
        let (Term::Distillation { student: a, teacher: b, .. } | Term::Imitation { student: a, teacher: b }) = term
        else {
            continue;
        };
        // What is not there, each model says for itself.
        let (Some(x), Some(y)) = (own.shape(a), other.shape(b)) else { continue };
        let (x, y) = (x.get(1..).unwrap_or_default(), y.get(1..).unwrap_or_default());
        if x == y {
            continue;
        }
        let (student, teacher) = (student.display(), teacher.display());
        return Err(match (term, x, y) {
            (Term::Distillation { .. }, [x], [y]) => Error::new(
                ErrorKind::Usage,
                format!("the student `{student}` tells {x} classes apart and the teacher `{teacher}` {y}"),
            )
            .hint(format!(
                "give a teacher of the same classes, or ⟦classes⟧ {y} and its data; ⟦feature⟧ compares values behind \
                 other classifiers"
            )),
            _ => Error::new(
                ErrorKind::Usage,
                format!(
                    "of a sample `{a}` of the student `{student}` is {x:?} and `{b}` of the teacher `{teacher}` \
                    is {y:?}"
                ),
            )
            .hint(
                "a loss compares values of one shape: give another teacher, or ⟦feature⟧ STUDENT=TEACHER with values \
                that are alike",
            ),
        });
    }
    Ok(())
}

/// The value of the teacher that holds its classes, and where each of the student's lies there, where names say that
/// the order is another. A student without names has the order of the data's labels. What names do not settle is said.
pub(super) fn classes(
    [student, teacher]: [&Path; 2],
    [own, other]: [&Model; 2],
    data: &Data,
    loss: &Loss,
    listener: &dyn Listener,
) -> Option<(String, Vec<usize>)> {
    let first = |m: &Model| m.graph().output.first().map(|o| o.name().to_string());
    let outputs = (first(own)?, first(other)?);
    let compares = |term: &Term| match term {
        Term::Distillation { student, teacher, .. } | Term::Imitation { student, teacher } => {
            (student, teacher) == (&outputs.0, &outputs.1)
        }
        _ => false,
    };
    if !loss.terms.iter().any(|(_, term)| compares(term)) {
        return None;
    }
    let typing = Typing::new(other).ok()?;
    let count = class_factor(&typing).map(|f| typing.factors.factor_size(f))?;
    let fits = |names: &Vec<String>| names.len() == count;
    let of_data = || data.dataset.labels().and(data.dataset.classes()).map(<[String]>::to_vec);
    let names = class_names(own).filter(fits).or_else(|| of_data().filter(fits))?;
    let (student, teacher) = (student.display(), teacher.display());
    match Correspondence::of(&names, &class_names(other).filter(fits)?) {
        Correspondence::Same => None,
        Correspondence::Moved(places) => {
            listener.warn(&format!(
                "the teacher `{teacher}` has the classes of the student `{student}` in another order: they are matched \
                 by name"
            ));
            Some((outputs.1, places))
        }
        Correspondence::Unlike(a, b) => {
            listener.warn(&format!(
                "the classes of the student `{student}` and of the teacher `{teacher}` are taken in their order, and \
                 their names differ: `{a}` is taught what `{b}` is"
            ));
            None
        }
    }
}

/// How the teacher sees the images, and in which size: with a transform of its own, but of every picture what the
/// student sees of it. A teacher that says nothing of its transform is taken to have the student's; `flags` are those
/// of the student.
pub(super) fn view(
    teacher: &Model,
    data: &Data,
    flags: &PreprocessFlags,
    student: &InputTransform,
    image: [usize; 2],
) -> Result<(InputTransform, [usize; 2])> {
    let Ok(typing) = Typing::new(teacher) else { return Ok((student.clone(), image)) };
    let input = InputShape::of(&typing)?;
    let size = [input.height, input.width];
    let known = teacher.metadata(PREPROCESS);
    let preprocess = match (known, &student.preprocess) {
        (None, Some(student)) if student.channels == input.channels => Some(Preprocess { size, ..student.clone() }),
        // Flags speak of the student.
        (Some(_), _) => data.dataset.preprocess(&PreprocessFlags::default(), known, input)?,
        (None, _) => data.dataset.preprocess(flags, None, input)?,
    };
    let preprocess = preprocess.map(|own| match &student.preprocess {
        Some(student) => Preprocess { crop_ratio: student.crop_ratio, resize: student.resize, ..own },
        None => own,
    });
    Ok((InputTransform { preprocess, layout: input.layout }, size))
}

/// Says that the teacher sees the images otherwise than the student.
pub(super) fn say(teacher: &Path, view: &InputTransform, listener: &dyn Listener) {
    let Some(p) = &view.preprocess else { return };
    listener.note(&format!(
        "the teacher `{}` sees what the student sees at {} x {} pixels, with mean {:?} and deviation {:?}",
        teacher.display(),
        p.size[0],
        p.size[1],
        p.mean,
        p.std
    ));
}
