//! The argument grammar (cli §1.2), brought to the stricter form that `clap` reads.
//!
//! One dash is as good as two, options stand anywhere, single letters do not combine, and the messages for what is wrong are those that
//! scripts look for. The result is `pando COMMAND --option=value… -- POSITIONALS…`.

use crate::cli::accepted::{self, Effect};
use clap::{Arg, ArgAction, Command};

/// Commands of the reference that this build does not have. They are told apart from misspelt ones.
const UNSUPPORTED: &[&str] = &["tier", "changelog", "gateway", "webdav", "objbench", "mdtest", "sync"];

/// A command line that `clap` can read.
#[derive(Debug, PartialEq, Eq)]
pub struct Normal {
    /// All arguments, the program's name first.
    pub args: Vec<String>,
    /// Accepted options without effect that deserve a warning.
    pub warnings: Vec<String>,
}

/// What else a command line may lead to.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Show the help of this command, or of the program.
    Help(Option<String>),
    /// Show the version.
    Version,
    /// There is no such command.
    NoCommand(String),
    /// One line for the log; the command line is wrong.
    Wrong(String),
    /// An option lacks its value: the help goes with the message.
    NoValue {
        /// The option as it was written.
        option: String,
        /// The command whose help is shown.
        command: String,
    },
    /// Too few or too many positional arguments.
    Count {
        /// The sentence.
        message: String,
        /// The command whose synopsis is shown.
        command: String,
    },
}

/// How an option is to be treated.
enum Known<'a> {
    Clap(&'a Arg),
    Accepted(&'a accepted::Flag),
}

/// What follows an option.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arity {
    /// Nothing; `=false` is as if it were not there.
    Switch,
    /// Nothing, or `=true` and `=false`, which are told apart from its absence.
    Choice,
    /// A value.
    Value,
}

impl Known<'_> {
    fn arity(&self) -> Arity {
        match self {
            Known::Clap(arg) if arg.get_num_args().is_some_and(|count| count.min_values() == 0 && count.max_values() == 1) => Arity::Choice,
            Known::Clap(arg) if matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) => Arity::Value,
            Known::Clap(_) => Arity::Switch,
            Known::Accepted(flag) if flag.takes_value => Arity::Value,
            Known::Accepted(_) => Arity::Switch,
        }
    }
}

/// Whether an option of a command, or of all commands, takes a value; `None` if it is not known.
pub fn option_takes_value(program: &Command, command: &str, option: &str) -> Option<bool> {
    find(program, program.find_subcommand(command), option).map(|known| known.arity() == Arity::Value)
}

/// Brings a command line to its normal form. `program` is the definition of all commands and options.
pub fn normalise(program: &Command, line: &[String]) -> Result<Normal, Stop> {
    let name = command_of(program, line)?;
    if name.as_deref() == Some("help") {
        let topic = line.iter().skip_while(|word| *word != "help").nth(1).filter(|topic| program.find_subcommand(topic).is_some());
        return Err(Stop::Help(topic.cloned()));
    }
    let command = match &name {
        Some(name) => Some(program.find_subcommand(name).ok_or_else(|| match UNSUPPORTED.contains(&name.as_str()) {
            true => Stop::Wrong(format!("`{name}` is not supported by this build")),
            false => Stop::NoCommand(name.clone()),
        })?),
        None => None,
    };
    let mut normal = Normal { args: vec!["pando".into()], warnings: Vec::new() };
    let mut options = Vec::new();
    let mut positionals = Vec::new();
    let mut rest = line.iter();
    while let Some(word) = rest.next() {
        let Some((spelt, option, value)) = split_option(word) else {
            if word == "--" {
                positionals.extend(rest.by_ref().cloned());
            } else {
                positionals.push(word.clone());
            }
            continue;
        };
        match option {
            "h" | "help" => return Err(Stop::Help(name)),
            "V" | "version" => return Err(Stop::Version),
            _ => {}
        }
        let known = find(program, command, option).ok_or_else(|| Stop::Wrong(format!("unknown option: {word:?}")))?;
        let value = match (known.arity(), value) {
            (Arity::Value, Some(value)) => Some(value.to_string()),
            (Arity::Choice, Some("true" | "false")) => value.map(String::from),
            (Arity::Choice, None) => Some("true".into()),
            (Arity::Value, None) => {
                let missing = || Stop::NoValue { option: spelt.into(), command: name.clone().unwrap_or_default() };
                Some(rest.next().cloned().ok_or_else(missing)?)
            }
            (Arity::Switch, Some("false")) => continue,
            (Arity::Switch, None | Some("true")) => None,
            (Arity::Switch | Arity::Choice, Some(value)) => {
                return Err(Stop::Wrong(format!("Invalid value {value:?} for {option:?}: it is a switch, true or false")));
            }
        };
        match known {
            Known::Clap(arg) => {
                let long = arg.get_long().unwrap_or(option);
                options.push(value.map_or(format!("--{long}"), |value| format!("--{long}={value}")));
            }
            Known::Accepted(flag) => match flag.effect {
                Effect::Silent => {}
                Effect::Warn(why) => normal.warnings.push(format!("--{} {why}", flag.name)),
                Effect::Refuse(why) => return Err(Stop::Wrong(format!("--{} {why}", flag.name))),
                Effect::Check(check) => match check(value.as_deref().unwrap_or_default()) {
                    Ok(None) => {}
                    Ok(Some(why)) => normal.warnings.push(format!("--{} {why}", flag.name)),
                    Err(message) => return Err(Stop::Wrong(message)),
                },
            },
        }
    }
    let (Some(name), Some(command)) = (name, command) else { return Err(Stop::Help(None)) };
    // The first of them is the command itself.
    positionals.remove(0);
    check_count(command, &name, &positionals)?;
    normal.args.push(name);
    normal.args.append(&mut options);
    normal.args.push("--".into());
    normal.args.append(&mut positionals);
    Ok(normal)
}

/// The first word that is neither an option nor the value of a global one.
fn command_of(program: &Command, line: &[String]) -> Result<Option<String>, Stop> {
    let mut rest = line.iter();
    while let Some(word) = rest.next() {
        match split_option(word) {
            None if word == "--" => return Ok(rest.next().cloned()),
            None => return Ok(Some(word.clone())),
            // An option nobody knows is reported later; whether it takes a value cannot be told.
            Some((_, option, value)) => {
                if value.is_none() && find(program, None, option).is_some_and(|known| known.arity() == Arity::Value) {
                    rest.next();
                }
            }
        }
    }
    Ok(None)
}

/// An option as it was spelt, its name without dashes, and a value given with `=`.
fn split_option(word: &str) -> Option<(&str, &str, Option<&str>)> {
    let bare = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|bare| !bare.is_empty())?;
    let (name, value) = match bare.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (bare, None),
    };
    let spelt = &word[..word.len() - value.map_or(0, |value| value.len() + 1)];
    Some((spelt, name, value))
}

fn find<'a>(program: &'a Command, command: Option<&'a Command>, option: &str) -> Option<Known<'a>> {
    let named = |arg: &&Arg| {
        let letter = arg.get_short().is_some_and(|letter| option.len() == letter.len_utf8() && option.starts_with(letter));
        letter || arg.get_long() == Some(option) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&option))
    };
    let own = command.and_then(|command| command.get_arguments().find(named));
    if let Some(arg) = own.or_else(|| program.get_arguments().find(named)) {
        return Some(Known::Clap(arg));
    }
    let flags = accepted::flags(command.map_or("", Command::get_name));
    flags.iter().chain(accepted::GLOBAL).find(|flag| flag.name == option).map(Known::Accepted)
}

fn check_count(command: &Command, name: &str, positionals: &[String]) -> Result<(), Stop> {
    let least = command.get_positionals().filter(|arg| arg.is_required_set()).count();
    let many = command.get_positionals().any(|arg| matches!(arg.get_action(), ArgAction::Append));
    let most = command.get_positionals().count();
    let wrong = |message| Err(Stop::Count { message, command: name.into() });
    let arguments = |n: usize| format!("{n} argument{}", if n == 1 { "" } else { "s" });
    if positionals.len() < least {
        return wrong(format!("This command requires at least {}", arguments(least)));
    }
    if positionals.len() > most && !many {
        return wrong(format!("This command accept at most {} but got {positionals:?}", arguments(most)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    fn run(line: &str) -> Result<Normal, Stop> {
        let words: Vec<String> = line.split_whitespace().map(String::from).collect();
        normalise(&crate::cli::Cli::command(), &words)
    }

    #[test]
    fn every_spelling_becomes_one() {
        let table = [
            ("mount vol mnt -d", "pando mount --background -- vol mnt"),
            ("-q mount --d vol -subdir a mnt", "pando mount --quiet --background --subdir=a -- vol mnt"),
            ("mount vol mnt -o ro,allow_other", "pando mount --options=ro,allow_other -- vol mnt"),
            ("--log-id x mount vol mnt --read-only=false", "pando mount --log-id=x -- vol mnt"),
            ("mount vol mnt -no-usage-report -f --debug", "pando mount --verbose -- vol mnt"),
            ("format vol name --block-size 1M --force", "pando format --block-size=1M --force -- vol name"),
            ("umount -f mnt", "pando umount --force -- mnt"),
            ("info a b c", "pando info -- a b c"),
            ("config vol --dir-stats=false --enable-acl -y", "pando config --dir-stats=false --enable-acl=true --yes -- vol"),
            ("umount -- -odd", "pando umount -- -odd"),
        ];
        for (line, normal) in table {
            assert_eq!(run(line).expect(line).args.join(" "), normal, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_as_scripts_expect() {
        let wrong = |text: &str| Stop::Wrong(text.into());
        let table = [
            ("nosuch", Stop::NoCommand("nosuch".into())),
            ("", Stop::Help(None)),
            ("mount -h", Stop::Help(Some("mount".into()))),
            ("help", Stop::Help(None)),
            ("help mount", Stop::Help(Some("mount".into()))),
            ("--version", Stop::Version),
            ("status vol --nosuch", wrong("unknown option: \"--nosuch\"")),
            ("umount -rf mnt", wrong("unknown option: \"-rf\"")),
            ("gateway vol", wrong("`gateway` is not supported by this build")),
            ("mount vol mnt -log", Stop::NoValue { option: "-log".into(), command: "mount".into() }),
            ("format vol", Stop::Count { message: "This command requires at least 2 arguments".into(), command: "format".into() }),
        ];
        for (line, stop) in table {
            assert_eq!(run(line), Err(stop), "{line}");
        }
    }

    /// What a fleet writes into its scripts. Each word must be accepted.
    #[test]
    fn lines_in_use_are_accepted() {
        for line in [
            "format --storage s3 --bucket http://rustfs:9000/djinnbot --access-key ak --secret-key sk --trash-days 7 redis://redis:6379/2 djinnbot",
            "mount --cache-dir /var/jfsCache --cache-size 20480 --backup-meta 3600 --no-usage-report --buffer-size 300 --prefetch 1 \
             --max-uploads 20 --attr-cache 1 --entry-cache 1 --dir-entry-cache 1 redis://redis:6379/2 /jfs",
            "format --no-update --storage=file --bucket=/b --access-key= --block-size=4M --compress=lz4 --trash-days=1 --capacity=1 --inodes=5 \
             --shards=0 --secret-key=x redis://h/1 vol --encrypt-rsa-key=/k.pem",
            "config redis://h/1 --trash-days 7 --capacity 10 --inodes 1000 --upload-limit 100 --download-limit 0 --yes --force",
            "mount redis://h/1 /jfs -d --log /l --read-only --subdir a -o allow_other,ro --writeback --cache-dir a:b --open-cache 0 --metrics x:1",
            "status redis://h/1 --session 1 -m",
            "umount /jfs --force --flush",
        ] {
            let normal = run(line).expect(line);
            crate::cli::Cli::try_parse_from(normal.args).expect(line);
        }
    }

    /// The document and `--help` name the same options.
    #[test]
    fn the_document_names_the_options_there_are() {
        let program = crate::cli::Cli::command();
        let text = include_str!("../../docs/cli.md");
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).filter_map(|word| word.strip_prefix("--"));
        let named: std::collections::BTreeSet<&str> = words.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect();
        for option in &named {
            let known = program.get_subcommands().any(|command| find(&program, Some(command), option).is_some());
            // The grammar is explained by one that stands for all.
            assert!(known || *option == "option" || *option == "help", "docs/cli.md names --{option}, which no command knows");
        }
        for command in program.get_subcommands().chain([&program]) {
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let Some(long) = arg.get_long() else { continue };
                assert!(named.contains(long), "{} --{long} is not in docs/cli.md", command.get_name());
            }
        }
    }

    #[test]
    fn options_without_effect_are_named_once() {
        let normal = run("mount vol mnt --tag 10 --no-syslog").expect("accepted");
        assert_eq!(normal.warnings, ["--tag has no effect: this build stores no tags"]);
        assert!(matches!(run("mount vol mnt --all-squash 1:1"), Err(Stop::Wrong(_))));
    }
}
