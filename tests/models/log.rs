//! A log in a model: the terms of its entries. A leader makes one entry an index in its term, so that
//! term and index tell all.

/// Most entries.
pub const ENTRIES_MAX: usize = 6;

/// Terms of the entries, then zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Log([u8; ENTRIES_MAX]);

/// Term and index from 1; (0, 0) is before the first.
pub type Id = (u8, u8);

impl Log {
    pub fn len(&self) -> u8 {
        self.0.iter().filter(|term| **term != 0).count() as u8
    }

    pub fn is_full(&self) -> bool {
        self.0[ENTRIES_MAX - 1] != 0
    }

    /// Term of an entry; 0 when there is none.
    pub fn term(&self, index: u8) -> u8 {
        match usize::from(index).checked_sub(1) {
            Some(at) => self.0.get(at).copied().unwrap_or(0),
            None => 0,
        }
    }

    pub fn last(&self) -> Id {
        (self.term(self.len()), self.len())
    }

    pub fn push(&mut self, term: u8) {
        self.0[usize::from(self.len())] = term;
    }

    pub fn cut(&mut self, len: u8) {
        self.0[usize::from(len)..].fill(0);
    }

    /// The first `len` entries.
    pub fn head(mut self, len: u8) -> Self {
        self.cut(len);
        self
    }

    /// How many entries from the first on are the same.
    pub fn common(&self, other: &Self) -> u8 {
        let pairs = self.0.iter().zip(&other.0);
        pairs.take_while(|(a, b)| a == b && **a != 0).count() as u8
    }

    /// Whether it begins with all of `head`.
    pub fn has(&self, head: &Self) -> bool {
        self.common(head) == head.len()
    }

    /// What a follower's log becomes that matches `leader` up to its common part and gets the
    /// leader's entries up to `len`: what does not fit is cut, what is behind the last one stays.
    pub fn take(&mut self, leader: &Self, len: u8) {
        if self.common(leader) < len {
            *self = leader.head(len);
        }
    }
}
