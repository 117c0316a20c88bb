//! Which layers a method builds a descendant from, and what it allows to be asked for.

use super::choice::Layers;
use super::init::{Inherit, Init, LayerSource};
use super::plan::GrowOptions;
use super::transform::Transform;
use crate::anatomy::Stack;
use crate::error::{Error, ErrorKind, Result};

/// Checks that what a shape asks for is something that its method defines.
pub(super) fn check(shape: &GrowOptions, is_gene: bool) -> Result<()> {
    let init = shape.init;
    let usage = |what: String, hint: &str| Err(Error::new(ErrorKind::Usage, what).hint(hint));
    let name = init.name();
    if init != Init::ClusterLearngene && is_gene {
        return usage(
            format!("{name} needs more than a learngene holds, and the model is a learngene"),
            "give the ancestor",
        );
    }
    if shape.tied && init != Init::ClusterLearngene {
        return usage(format!("{name} has no learngene to tie weights to"), "leave out ⟦tied⟧");
    }
    if shape.inherit.is_some() && !init.takes_inherit() {
        return usage(
            format!("{name} does not inherit single layers"),
            "⟦inherit⟧ goes with pretrain-finetune, heuristic-learngene and auto-learngene",
        );
    }
    if !matches!(shape.inherit, None | Some(Inherit::Count(_))) && init != Init::PretrainFinetune {
        return usage(format!("{name} says itself which layers are inherited"), "give ⟦inherit⟧ a number alone");
    }
    if shape.embedding_dim.is_some() && !init.takes_embedding() {
        return usage(
            format!("{name} does not define another embedding dimension"),
            "⟦embedding-dim⟧ goes with weight-selection and from-scratch",
        );
    }
    if shape.share.is_some() && init != Init::WeightTransformation {
        return usage(format!("{name} shares no consecutive layers"), "⟦share⟧ goes with weight-transformation");
    }
    let transforms = shape.transform.is_some_and(|t| t != Transform::None);
    if transforms && !matches!(init, Init::ClusterLearngene | Init::WeightTransformation) {
        return usage(
            format!("{name} shares no weights that could be transformed"),
            "⟦transform⟧ goes with cluster-learngene and weight-transformation",
        );
    }
    if shape.share == Some(0) || shape.share == Some(1) {
        return usage("layers are shared by two or more".into(), "give ⟦share⟧ 2 or more");
    }
    Ok(())
}

/// The layers of an ancestor of these stacks that a descendant is built from, and where the weights of each come from.
pub(super) fn layers(shape: &GrowOptions, stacks: &[Stack], spared: &[bool]) -> Result<(Vec<usize>, Vec<LayerSource>)> {
    let count = spared.len();
    if shape.init != Init::ClusterLearngene && spared.contains(&true) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{} makes weights of all layers anew, and ⟦of⟧ spares some", shape.init.name()),
        )
        .hint("leave out ⟦of⟧, or ⟦init⟧"));
    }
    let kept = shape
        .layers
        .choose(stacks, spared)
        .map_err(|e| e.hint("layers can only be dropped: choose among the ancestor's with ⟦layers⟧"))?;
    let n = kept.len();
    let sources = |range: std::ops::Range<usize>| {
        (0..n)
            .map(|i| if range.contains(&i) { LayerSource::Inherited } else { LayerSource::Random })
            .collect::<Vec<_>>()
    };
    let enough = |m: usize| match m {
        0 => Err(Error::new(ErrorKind::Usage, "⟦inherit⟧ 0 inherits nothing").hint("use ⟦init⟧ from-scratch")),
        m if m > n => {
            Err(Error::new(ErrorKind::Usage, format!("{m} layers cannot be inherited: the descendant has {n}"))
                .hint("give ⟦layers⟧ more or ⟦inherit⟧ less"))
        }
        m => Ok(m),
    };
    // Heuristic-Learngene and Auto-Learngene say which layers are inherited: the descendant stands at that end of the
    // ancestor.
    let published = (count / 2).clamp(1, n);
    let named = |end: Vec<usize>| match shape.layers {
        Layers::List(_) | Layers::Even(_) | Layers::Stacks(_) => {
            Err(Error::new(ErrorKind::Usage, format!("{} says itself which layers are inherited", shape.init.name()))
                .hint("give ⟦layers⟧ a number alone"))
        }
        _ => Ok(end),
    };
    Ok(match (shape.init, shape.inherit) {
        (Init::PretrainFinetune, Some(choice)) => {
            let range = match choice {
                Inherit::Front(m) => 0..enough(m)?,
                Inherit::Middle(m) => {
                    let first = (n - enough(m)?) / 2;
                    first..first + m
                }
                Inherit::Last(m) => n - enough(m)?..n,
                Inherit::Count(_) => {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        "pretrain-finetune does not say which layers are inherited",
                    )
                    .hint("write ⟦inherit⟧ front:N, middle:N or last:N"));
                }
            };
            (kept, sources(range))
        }
        (Init::HeuristicLearngene, choice) => {
            let m = match choice {
                Some(Inherit::Count(m)) => enough(m)?,
                _ => published,
            };
            (named((count - n..count).collect())?, sources(n - m..n))
        }
        (Init::AutoLearngene, choice) => {
            let m = match choice {
                Some(Inherit::Count(m)) => enough(m)?,
                _ => published,
            };
            (named((0..n).collect())?, sources(0..m))
        }
        (Init::FromScratch, _) => (kept, vec![LayerSource::Random; n]),
        (Init::LinearExpansion | Init::Frequency, _) => (kept, vec![LayerSource::Expanded; n]),
        (Init::WeightTransformation, _) => {
            let size = shape.share.unwrap_or(2);
            let source = |i: usize| if i.is_multiple_of(size) { LayerSource::Inherited } else { LayerSource::Shared };
            (kept, (0..n).map(source).collect())
        }
        _ => (kept, vec![LayerSource::Inherited; n]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_say_which_layers_inherit() {
        let of = |init, inherit, n| {
            let shape = GrowOptions { init, inherit, layers: Layers::First(n), ..GrowOptions::default() };
            let stack = Stack { name: "vision".into(), layers: (0..12).collect() };
            let (kept, sources) = layers(&shape, &[stack], &[false; 12]).unwrap();
            let inherited = |i: &usize| sources[*i] == LayerSource::Inherited;
            (kept.clone(), (0..n).filter(inherited).map(|i| kept[i]).collect::<Vec<_>>())
        };
        // The published settings: the last or first six of twelve layers.
        assert_eq!(of(Init::HeuristicLearngene, None, 8), ((4..12).collect(), (6..12).collect()));
        assert_eq!(of(Init::AutoLearngene, None, 8), ((0..8).collect(), (0..6).collect()));
        assert_eq!(of(Init::HeuristicLearngene, None, 4).1, [8, 9, 10, 11]);
        let ten = |choice| of(Init::PretrainFinetune, Some(choice), 12).1;
        assert_eq!(ten(Inherit::Front(10)), (0..10).collect::<Vec<_>>());
        assert_eq!(ten(Inherit::Middle(10)), (1..11).collect::<Vec<_>>());
        assert_eq!(ten(Inherit::Last(10)), (2..12).collect::<Vec<_>>());
    }
}
