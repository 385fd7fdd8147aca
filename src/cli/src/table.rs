//! Aligned tables as kubectl prints them: three spaces between columns, no lines, no colour.

/// Rows under a head.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: Vec<String>) {
        // A control character from a name or a message must not move the cursor.
        self.rows
            .push(cells.iter().map(|c| crate::fail::one_line(c)).collect());
    }

    /// The table as text. With a width the last column is cut with `…` where it does not fit.
    pub fn text(&self, width: Option<usize>) -> String {
        let mut lines = self.lines(width);
        lines.push(String::new());
        lines.join("\n")
    }

    /// Head and rows, one line each.
    pub fn lines(&self, width: Option<usize>) -> Vec<String> {
        let columns = self.head.len();
        let widths: Vec<usize> = (0..columns)
            .map(|c| {
                self.rows
                    .iter()
                    .map(|r| cell(r, c).chars().count())
                    .chain([self.head[c].len()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let head: Vec<String> = self.head.iter().map(|h| (*h).to_owned()).collect();
        let print = |row: &Vec<String>| {
            let mut line = String::new();
            for (c, width) in widths.iter().enumerate() {
                if c > 0 {
                    line.push_str("   ");
                }
                let text = cell(row, c);
                line.push_str(text);
                if c + 1 < columns {
                    line.extend(std::iter::repeat_n(
                        ' ',
                        width.saturating_sub(text.chars().count()),
                    ));
                }
            }
            cut(line.trim_end(), width)
        };
        std::iter::once(&head)
            .chain(&self.rows)
            .map(print)
            .collect()
    }
}

fn cell(row: &[String], column: usize) -> &str {
    row.get(column).map_or("", String::as_str)
}

fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => {
            let mut cut: String = line.chars().take(width - 1).collect();
            cut.push('…');
            cut
        }
        _ => line.to_owned(),
    }
}

/// Text in lines of at most `width` columns, the first behind `prefix` and the others as far in.
pub fn paragraph(prefix: &str, text: &str, width: usize) -> String {
    let indent = " ".repeat(prefix.chars().count());
    let mut lines = vec![prefix.to_owned()];
    let mut fresh = true;
    for word in text.split_whitespace() {
        let used = lines.last().map_or(0, |l| l.chars().count());
        if !fresh && used + 1 + word.chars().count() > width {
            lines.push(indent.clone());
            fresh = true;
        }
        if let Some(line) = lines.last_mut() {
            if !fresh {
                line.push(' ');
            }
            line.push_str(word);
        }
        fresh = false;
    }
    let mut text: String = lines
        .iter()
        .map(|l| l.trim_end())
        .collect::<Vec<_>>()
        .join("\n");
    text.push('\n');
    text
}

/// An age as kubectl prints it: `45s`, `12m`, `3h`, `2d`.
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
        table.row(vec!["é".into(), "Waiting".into()]);
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
    fn paragraphs_hang_behind_their_prefix() {
        assert_eq!(paragraph("- ", "aa bb cc", 7), "- aa bb\n  cc\n");
        assert_eq!(paragraph("", "averylongword b", 4), "averylongword\nb\n");
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
