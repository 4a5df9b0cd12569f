//! Categories, sets of them, and the pairs a guest is given.
//!
//! Access under MCS is dominance: a process at `{c5,c9}` may use an object at `{c5}`. Two guests are apart
//! only while neither's set contains the other's, so what matters everywhere is whether two sets are
//! *comparable*, not whether they are equal. Two different pairs never are.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand::seq::SliceRandom;
use rand::seq::index::sample_array;

/// How many categories a policy of one sensitivity has: `c0` to `c1023` (refpolicy `MCS_CATS`).
pub const CATEGORIES: u16 = 1024;

/// Why a text is no category, set or pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no set of categories (c0 to c1023, as c5,c9 or c5.c9)", self.0)
    }
}

impl std::error::Error for Malformed {}

/// One category, written `c0` to `c1023`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Category(u16);

impl Category {
    /// The category of this number; `None` from [`CATEGORIES`] up.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        (number < CATEGORIES).then_some(Self(number))
    }

    fn bit(self) -> (usize, u64) {
        (usize::from(self.0 / 64), 1 << (self.0 % 64))
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

impl FromStr for Category {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        text.strip_prefix('c').and_then(number).and_then(Self::new).ok_or_else(|| Malformed(text.into()))
    }
}

/// A number as the policy's names have it, and as a domid is written: digits alone, no sign, no leading zero.
pub(crate) fn number(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    plain.then(|| digits.parse().ok()).flatten()
}

/// Any set of categories, the empty one included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set([u64; CATEGORIES as usize / 64]);

impl Set {
    /// Adds a category.
    pub fn insert(&mut self, category: Category) {
        let (word, bit) = category.bit();
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    /// Whether the category is in the set.
    #[must_use]
    pub fn contains(&self, category: Category) -> bool {
        let (word, bit) = category.bit();
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// The categories, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Category> + '_ {
        let bits = |word: &u64| {
            let rest = |word: u64| Some(word).filter(|word| *word != 0);
            std::iter::successors(rest(*word), move |word| rest(word & (word - 1))).map(u64::trailing_zeros)
        };
        self.0.iter().zip(0..).flat_map(move |(word, index)| {
            bits(word).filter_map(move |bit| Category::new(64 * index + u16::try_from(bit).ok()?))
        })
    }

    /// How many categories it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it holds none: the set of a level without categories.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Whether a level with this set dominates one with the other: every category of `other` is here.
    #[must_use]
    pub fn dominates(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(mine, theirs)| theirs & !mine == 0)
    }

    /// Whether one of the two dominates the other, so that they do not keep two guests apart.
    #[must_use]
    pub fn comparable(&self, other: &Self) -> bool {
        self.dominates(other) || other.dominates(self)
    }
}

impl fmt::Display for Set {
    /// As the kernel writes it: `c1,c5.c9`, three adjacent ones and more as a run
    /// (`mls_sid_to_context` in security/selinux/ss/mls.c).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest: Vec<Category> = self.iter().collect();
        let mut comma = "";
        while let Some(&first) = rest.first() {
            let run = rest.iter().zip(first.0..).take_while(|(category, next)| category.0 == *next).count();
            let last = Category(first.0 + u16::try_from(run).unwrap_or(1) - 1);
            match run {
                1 => write!(f, "{comma}{first}")?,
                2 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}.{last}")?,
            }
            comma = ",";
            rest.drain(..run);
        }
        Ok(())
    }
}

impl FromStr for Set {
    type Err = Malformed;

    /// Reads `c1,c5.c9`. A bare number is the one category it names, as OpenXT's interposer publishes it.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed(text.into());
        let mut set = Self::default();
        if let Some(category) = number(text).and_then(Category::new) {
            set.insert(category);
            return Ok(set);
        }
        for part in text.split(',') {
            let (first, last) = part.split_once('.').unwrap_or((part, part));
            let (first, last): (Category, Category) =
                (first.parse().map_err(|_| malformed())?, last.parse().map_err(|_| malformed())?);
            if first > last {
                return Err(malformed());
            }
            (first.0..=last.0).for_each(|number| set.insert(Category(number)));
        }
        Ok(set)
    }
}

/// What a guest is given: two different categories, the lower first.
///
/// Never one: a pair held by another program on the host would dominate it (CVE-2021-3631).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair(Category, Category);

impl Pair {
    /// The pair of two categories in either order; `None` when they are the same.
    #[must_use]
    pub fn new(one: Category, other: Category) -> Option<Self> {
        (one != other).then(|| Self(one.min(other), one.max(other)))
    }

    /// The pair as a set.
    #[must_use]
    pub fn set(self) -> Set {
        let mut set = Set::default();
        set.insert(self.0);
        set.insert(self.1);
        set
    }

    /// The pair that this set is; `None` when it has not exactly two categories.
    #[must_use]
    pub fn of(set: &Set) -> Option<Self> {
        let mut categories = set.iter();
        let pair = Self(categories.next()?, categories.next()?);
        categories.next().is_none().then_some(pair)
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.0, self.1)
    }
}

impl FromStr for Pair {
    type Err = Malformed;

    /// Reads `cA,cB` with A below B, the one spelling a pair is published and claimed by.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let pair = text.parse().ok().as_ref().and_then(Self::of);
        pair.filter(|pair| pair.to_string() == text).ok_or_else(|| Malformed(text.into()))
    }
}

/// The sets in use on this host, kept so that asking for one pair costs the same however many there are.
#[derive(Debug, Default)]
pub struct InUse {
    pairs: HashSet<Pair>,
    singles: Set,
    larger: Vec<Set>,
}

impl InUse {
    /// Whether a guest with this pair would be comparable with one of the sets.
    #[must_use]
    pub fn collides(&self, pair: Pair) -> bool {
        self.pairs.contains(&pair)
            || self.singles.contains(pair.0)
            || self.singles.contains(pair.1)
            || self.larger.iter().any(|set| set.contains(pair.0) && set.contains(pair.1))
    }
}

impl Extend<Set> for InUse {
    fn extend<T: IntoIterator<Item = Set>>(&mut self, sets: T) {
        for set in sets {
            match (set.len(), Pair::of(&set)) {
                (0, _) => {}
                (1, _) => set.iter().for_each(|category| self.singles.insert(category)),
                (_, Some(pair)) => _ = self.pairs.insert(pair),
                (_, None) => self.larger.push(set),
            }
        }
    }
}

/// Random pairs from `pool` that collide with nothing in use, each of them once at least: a few drawn
/// blindly, which is all a host with room needs, then every one that is left in random order. It ends when
/// the pool is exhausted.
pub fn candidates<'a, R: Rng>(pool: &Set, in_use: &'a InUse, rng: &'a mut R) -> impl Iterator<Item = Pair> + 'a {
    const BLIND: usize = 32;
    let pool: Vec<Category> = pool.iter().collect();
    let mut drawn = 0;
    let mut rest: Option<Vec<Pair>> = None;
    std::iter::from_fn(move || {
        while drawn < BLIND {
            drawn += 1;
            let [one, other] = sample_array(rng, pool.len())?;
            let pair = Pair::new(*pool.get(one)?, *pool.get(other)?)?;
            if !in_use.collides(pair) {
                return Some(pair);
            }
        }
        rest.get_or_insert_with(|| {
            let above = |(index, low): (usize, &Category)| {
                let low = *low;
                pool.iter().skip(index + 1).filter_map(move |high| Pair::new(low, *high)).collect::<Vec<_>>()
            };
            let mut all: Vec<Pair> = pool.iter().enumerate().flat_map(above).collect();
            all.retain(|pair| !in_use.collides(*pair));
            all.shuffle(rng);
            all
        })
        .pop()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn set(text: &str) -> Set {
        text.parse().unwrap()
    }

    fn any_set() -> impl Strategy<Value = Set> {
        proptest::collection::vec(0..CATEGORIES, 0..12).prop_map(|numbers| {
            let mut set = Set::default();
            for number in numbers {
                set.insert(Category(number));
            }
            set
        })
    }

    #[test]
    fn reads_every_spelling_of_a_set_as_the_same_set() {
        assert_eq!(set("c2,c1"), set("c1,c2"));
        assert_eq!(set("c1.c3"), set("c1,c2,c3"));
        assert_eq!(set("c1,c1"), set("c1"));
        assert_eq!(set("5"), set("c5"));
        assert_eq!(set("c0.c1023").len(), 1024);
    }

    #[test]
    fn refuses_what_is_no_set() {
        for text in [
            "", "c", "c1024", "c-1", "c+1", "c01", "1024", " c1", "c1,", ",c1", "c3.c1", "c1.c2.c3", "abc", "C1",
            "c1\n", "-1",
        ] {
            assert!(text.parse::<Set>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn refuses_a_pair_in_any_spelling_but_its_own() {
        assert!("c5,c9".parse::<Pair>().is_ok());
        for text in ["c9,c5", "c5,c5", "c5", "5", "c5,c9,c11", "c5.c6", "c5.c7", ""] {
            assert!(text.parse::<Pair>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_pair_dominates_each_of_its_categories() {
        assert!(set("c5,c9").comparable(&set("c5")));
        assert!(!set("c5,c9").comparable(&set("c5,c6")));
        assert!(set("c5,c9").comparable(&set("c0.c1023")));
    }

    #[test]
    fn yields_each_free_pair_of_a_small_pool_and_then_ends() {
        let mut in_use = InUse::default();
        in_use.extend(["c0,c1", "3", "c0,c2,c4"].map(set));
        let mut rng = StdRng::seed_from_u64(7);
        let found: HashSet<String> =
            candidates(&set("c0.c4"), &in_use, &mut rng).map(|pair| pair.to_string()).collect();
        assert_eq!(found, ["c1,c2", "c1,c4"].map(String::from).into());
    }

    #[test]
    fn yields_nothing_from_a_pool_too_small_for_a_pair() {
        let mut rng = StdRng::seed_from_u64(7);
        assert_eq!(candidates(&set("c9"), &InUse::default(), &mut rng).count(), 0);
        assert_eq!(candidates(&Set::default(), &InUse::default(), &mut rng).count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(set in any_set()) {
            prop_assume!(!set.is_empty());
            prop_assert_eq!(set.to_string().parse::<Set>().unwrap(), set);
        }

        #[test]
        fn two_pairs_are_comparable_only_when_equal(a in 0..40u16, b in 0..40u16, c in 0..40u16, d in 0..40u16) {
            prop_assume!(a != b && c != d);
            let pair = |one, other| Pair::new(Category(one), Category(other)).unwrap();
            prop_assert_eq!(pair(a, b).set().comparable(&pair(c, d).set()), pair(a, b) == pair(c, d));
        }

        #[test]
        fn collides_exactly_with_comparable_sets(sets in proptest::collection::vec(any_set(), 0..6), a in 0..CATEGORIES, b in 0..CATEGORIES) {
            prop_assume!(a != b);
            let pair = Pair::new(Category(a), Category(b)).unwrap();
            let mut in_use = InUse::default();
            in_use.extend(sets.clone());
            let comparable = sets.iter().any(|set| !set.is_empty() && set.comparable(&pair.set()));
            prop_assert_eq!(in_use.collides(pair), comparable);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,24}") {
            if let Ok(set) = text.parse::<Set>() {
                prop_assert!(!set.is_empty());
            }
        }
    }
}
