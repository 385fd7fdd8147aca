//! Aligned tables as kubectl prints them: three spaces between columns, no lines, no colour.

use crate::fail::one_line;
use reattach_report::shortened;

pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        // A control character from a name or a message must not move the cursor.
        self.rows.push(cells.iter().map(|c| one_line(c)).collect());
    }

    /// Returns the table as text: [`Self::lines`], each with a line break.
    pub fn text(&self, width: Option<usize>) -> String {
        self.lines(width)
            .iter()
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Returns head and rows, one line each. With a width, a longer line is cut with `…`.
    pub fn lines(&self, width: Option<usize>) -> Vec<String> {
        let head: Vec<String> = self.head.iter().map(|h| (*h).to_owned()).collect();
        let rows = || std::iter::once(&head).chain(&self.rows);
        let widths: Vec<usize> = (0..head.len())
            .map(|c| rows().map(|row| row[c].chars().count()).max().unwrap_or(0))
            .collect();
        rows()
            .map(|row| {
                let cells: Vec<String> = row
                    .iter()
                    .zip(&widths)
                    .map(|(cell, &width)| format!("{cell:<width$}"))
                    .collect();
                let line = cells.join("   ");
                let line = line.trim_end();
                width.map_or_else(|| line.to_owned(), |width| shortened(line, width))
            })
            .collect()
    }
}

/// Formats an age as kubectl prints it: `45s`, `12m`, `3h`, `2d`.
pub fn age(from: jiff::Timestamp, now: jiff::Timestamp) -> String {
    let seconds = now.duration_since(from).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_only_the_end_is_cut() {
        let mut table = Table::new(&["CLAIM", "PHASE", "MESSAGE"]);
        table.row(vec![
            "data-redis-0".into(),
            "Recovered".into(),
            "StatefulSet/redis runs\nagain".into(),
        ]);
        table.row(vec!["é".into(), "Waiting".into(), String::new()]);
        assert_eq!(
            table.text(None),
            "CLAIM          PHASE       MESSAGE\n\
             data-redis-0   Recovered   StatefulSet/redis runs again\n\
             é              Waiting\n"
        );
        assert_eq!(
            table.lines(Some(40))[1],
            "data-redis-0   Recovered   StatefulSet/…"
        );
    }

    #[test]
    fn ages_are_short() {
        let at = |s: i64| jiff::Timestamp::from_second(s).unwrap();
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (172_800, "2d"),
            (-5, "0s"),
        ] {
            assert_eq!(age(at(0), at(seconds)), text);
        }
    }
}
