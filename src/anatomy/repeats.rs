//! Blocks that are used several times: layers that have matrices in common by design (ALBERT).

use super::roles::Roles;
use super::structure::{Anatomy, Attention};
use crate::axes::Typing;

impl Anatomy {
    /// For each layer the first one that has the matrices of its attention and of its FFNs: itself, where it has its
    /// own.
    pub fn same_blocks(&self, typing: &Typing) -> Vec<usize> {
        self.first_uses(typing, |l| std::iter::once(l.projection).chain(l.ffns.iter().map(|f| f.down)).collect())
    }

    /// For each layer the first one that has the matrices of its attention.
    pub fn same_attentions(&self, typing: &Typing) -> Vec<usize> {
        self.first_uses(typing, |l| vec![l.projection])
    }

    fn first_uses(&self, typing: &Typing, contractions: impl Fn(&Attention) -> Vec<usize>) -> Vec<usize> {
        let layers = self.layers.len();
        if typing.shared.is_empty() {
            return (0..layers).collect();
        }
        let roles = Roles::new(typing);
        let matrices = |l| contractions(l).into_iter().map(|k| roles.shared(k)).collect();
        let own: Vec<Vec<Vec<&str>>> = self.layers.iter().map(matrices).collect();
        let whole = |l: usize| own[l].iter().all(|names| !names.is_empty());
        (0..layers).map(|l| (0..l).find(|&first| whole(l) && own[first] == own[l]).unwrap_or(l)).collect()
    }
}
