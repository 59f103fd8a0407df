//! `summary`: how much is below a directory, by directory.

use crate::meta::ops::acl::{ENTER, READ};
use crate::meta::store::Cursor;
use crate::types::{Asker, Attr, BoxFuture, Errno, Ino, Kind, LEVELS_MAX};
use crate::volume::operator::{Failure, Operator, PAGE, Progress, switch, text};
use serde_json::{Value, json};

/// Deepest level that is shown, and most entries of a directory.
const DEPTH_MAX: u64 = 10;
const ENTRIES_MAX: u64 = 100;

/// What is below a name, and what is shown of it.
#[derive(Default)]
struct Node {
    name: String,
    is_dir: bool,
    size: u64,
    files: u64,
    dirs: u64,
    children: Vec<Node>,
}

impl Node {
    fn of(name: String, attr: &Attr) -> Node {
        let is_dir = attr.is_dir();
        let size = u64::try_from(attr.space()).unwrap_or(0);
        Node { name, is_dir, size, files: u64::from(!is_dir), dirs: u64::from(is_dir), children: Vec::new() }
    }

    fn add(&mut self, other: &Node) {
        self.size = self.size.saturating_add(other.size);
        self.files = self.files.saturating_add(other.files);
        self.dirs = self.dirs.saturating_add(other.dirs);
    }

    /// The largest `entries`, and one for the rest.
    fn fold(&mut self, entries: usize) {
        let rest = |node: &Node| node.name == "..." && node.children.is_empty();
        let folded = self.children.iter().position(rest).map(|at| self.children.remove(at));
        self.children.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.name.cmp(&b.name)));
        let mut others = folded.unwrap_or_else(|| Node { name: "...".into(), ..Node::default() });
        for node in self.children.split_off(self.children.len().min(entries)) {
            others.add(&node);
        }
        if others.files + others.dirs > 0 {
            self.children.push(others);
        }
    }

    fn document(&self) -> Value {
        let children: Vec<Value> = self.children.iter().map(Node::document).collect();
        json!({
            "Name": self.name, "IsDir": self.is_dir, "Size": self.size, "Files": self.files, "Dirs": self.dirs, "Children": children,
        })
    }
}

/// Who counts, and how.
struct Counting<'a> {
    asker: &'a Asker,
    entries: usize,
    /// Without the statistics of directories.
    strict: bool,
    progress: &'a Progress,
}

impl Operator {
    /// Sums of a tree.
    pub(super) async fn summary(&self, asker: &Asker, request: &Value, progress: &Progress) -> Result<Value, Failure> {
        let path = text(request, "Path")?;
        let found = self.walk(asker, path).await?;
        let number = |field: &str, default: u64, max: u64| request[field].as_u64().unwrap_or(default).min(max) as usize;
        let (depth, entries) = (number("Depth", 2, DEPTH_MAX), number("Entries", 10, ENTRIES_MAX));
        if self.writers.any_dirty() {
            self.writers.flush_all().await?;
        }
        let counting = Counting { asker, entries, strict: switch(request, "Strict"), progress };
        let mut top = Node::of("/".into(), &found.attr);
        if found.attr.is_dir() {
            let at = |errno| Failure::at(format!("/{path}"), errno);
            self.sum(&counting, (found.ino, &found.attr), &mut top, (depth, LEVELS_MAX)).await.map_err(at)?;
        }
        Ok(top.document())
    }

    fn sum<'a>(
        &'a self,
        counting: &'a Counting<'_>,
        (dir, attr): (Ino, &'a Attr),
        node: &'a mut Node,
        (depth, levels): (usize, usize),
    ) -> BoxFuture<'a, Result<(), Errno>> {
        Box::pin(async move {
            if levels == 0 {
                return Err(Errno::LOOP);
            }
            let &Counting { asker, entries, strict, progress } = counting;
            self.meta.check_access(asker, attr, READ | ENTER).await?;
            let mut cursor = Some(Cursor::new());
            while let Some(at) = cursor {
                if asker.cancel.is_cancelled() {
                    return Err(Errno::INTR);
                }
                let page = self.meta.readdir(dir, at, PAGE).await?;
                progress.add(page.entries.len() as u64, 0);
                let entries_of: Vec<_> =
                    page.entries.into_iter().filter_map(|entry| Some((entry.name, entry.kind, entry.ino, entry.attr?))).collect();
                let dirs = entries_of.iter().filter(|(_, kind, ..)| *kind == Kind::Dir).map(|(_, _, ino, attr)| (*ino, attr));
                // What is in those that are one line each need not be looked at, where the statistics tell it.
                let mut leaves = match depth <= 1 && !strict {
                    true => self.meta.leaves(&dirs.collect::<Vec<_>>()).await?.into_iter(),
                    false => Vec::new().into_iter(),
                };
                for (name, kind, ino, attr) in &entries_of {
                    let mut child = Node::of(String::from_utf8_lossy(name).into_owned(), attr);
                    if *kind == Kind::Dir {
                        match leaves.next().flatten() {
                            Some(leaf) => {
                                self.meta.check_access(asker, attr, READ | ENTER).await?;
                                child.size = child.size.saturating_add(leaf.space);
                                child.files = leaf.inodes;
                            }
                            None => self.sum(counting, (*ino, attr), &mut child, (depth.saturating_sub(1), levels - 1)).await?,
                        }
                    }
                    node.add(&child);
                    if depth > 0 {
                        node.children.push(child);
                    }
                }
                node.fold(entries);
                cursor = page.next;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_shown_and_the_rest_is_one_line() {
        let node = |name: &str, size| Node { name: name.into(), size, files: 1, ..Node::default() };
        let mut dir = Node::default();
        for page in [[("a", 1), ("b", 5), ("c", 3)], [("d", 4), ("e", 9), ("f", 1)]] {
            dir.children.extend(page.map(|(name, size)| node(name, size)));
            dir.fold(2);
        }
        let shown: Vec<_> = dir.children.iter().map(|node| (node.name.as_str(), node.size, node.files)).collect();
        assert_eq!(shown, [("e", 9, 1), ("b", 5, 1), ("...", 9, 4)]);
    }
}
