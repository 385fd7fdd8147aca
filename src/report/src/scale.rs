//! Linear time axis of a picture: the pixel of a value, and the round values that get a tick.

/// Tick distances in milliseconds, from 100 ms to 30 days.
const STEPS: [i64; 25] = [
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    15_000,
    30_000,
    60_000,
    120_000,
    300_000,
    600_000,
    900_000,
    1_800_000,
    3_600_000,
    7_200_000,
    10_800_000,
    21_600_000,
    43_200_000,
    86_400_000,
    172_800_000,
    604_800_000,
    1_209_600_000,
    2_592_000_000,
];

/// Axis over `from..=to` (milliseconds), drawn from pixel `left` to pixel `right`.
pub(crate) struct Axis {
    from: i64,
    to: i64,
    left: f64,
    right: f64,
}

impl Axis {
    /// Makes an axis. An empty range becomes one second.
    pub(crate) fn new(from: i64, to: i64, left: f64, right: f64) -> Self {
        Self {
            from,
            to: if to > from {
                to
            } else {
                from.saturating_add(1_000)
            },
            left,
            right,
        }
    }

    /// Returns the pixel of a value. Values outside lie on the edge.
    pub(crate) fn at(&self, value: i64) -> f64 {
        let value = value.clamp(self.from, self.to);
        // The casts lose nothing: spans of time fit into a double's 53 bits.
        let part =
            value.saturating_sub(self.from) as f64 / self.to.saturating_sub(self.from) as f64;
        self.left + part * (self.right - self.left)
    }

    /// Returns the distance between ticks of which at most `most` fit into the range.
    pub(crate) fn step(&self, most: i64) -> i64 {
        let range = self.to.saturating_sub(self.from);
        let fits = |step: &&i64| range / **step <= most;
        STEPS
            .iter()
            .find(fits)
            .copied()
            .unwrap_or_else(|| range / most.max(1))
    }

    /// Returns the values of the ticks: multiples of the step.
    pub(crate) fn ticks(&self, most: i64) -> Vec<i64> {
        let step = self.step(most).max(1);
        let first = self.from.div_euclid(step) * step;
        (0..=most + 2)
            .map(|i| first + i * step)
            .filter(|t| (self.from..=self.to).contains(t))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_maps_its_ends_to_its_edges_and_clamps() {
        let axis = Axis::new(1_000, 61_000, 100.0, 700.0);
        assert_eq!(
            (axis.at(1_000), axis.at(61_000), axis.at(31_000)),
            (100.0, 700.0, 400.0)
        );
        assert_eq!((axis.at(0), axis.at(99_000)), (100.0, 700.0));
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(
            Axis::new(500, 60_500, 0.0, 1.0).ticks(8),
            [10_000, 20_000, 30_000, 40_000, 50_000, 60_000]
        );
        for range in [1, 7, 1_000, 17_000, 333_333, 19_200_000, 9_999_999_999] {
            let n = Axis::new(0, range, 0.0, 1.0).ticks(8).len();
            assert!((1..=10).contains(&n), "{n} ticks for {range} ms");
        }
        assert_eq!(Axis::new(5_000, 5_000, 0.0, 1.0).at(5_000), 0.0);
    }
}
