//! Dumps as files: compressed by their names, complete or not there at all, read twice.

use crate::block::Encryption;
use crate::env::{Random, SystemRandom};
use crate::volume::VolumeError;
use crate::volume::restore_meta::decrypted;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Stdout, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Levels of both compressions: a dump is written once and as fast as the store is read.
const LEVEL: u32 = 1;
/// Bytes written or read at once.
const BUFFER: usize = 256 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Gzip,
    Zstd,
}

fn form(path: &Path) -> Form {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Form::Gzip,
        Some("zstd" | "zst") => Form::Zstd,
        _ => Form::Plain,
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> VolumeError {
    VolumeError::Failed(format!("cannot {what} {}: {error}", path.display()))
}

/// Where a dump goes: a file that takes its name when it is complete, or the standard output.
pub struct DumpOutput {
    sink: Sink,
    /// The name it has meanwhile, and the final one.
    names: Option<(PathBuf, PathBuf)>,
}

enum Sink {
    Stdout(BufWriter<Stdout>),
    Plain(BufWriter<File>),
    Gzip(Box<GzEncoder<BufWriter<File>>>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
}

impl DumpOutput {
    /// Into a file, or the standard output for `None`.
    pub fn create(path: Option<&Path>) -> Result<DumpOutput, VolumeError> {
        let Some(path) = path else {
            return Ok(DumpOutput { sink: Sink::Stdout(BufWriter::with_capacity(BUFFER, io::stdout())), names: None });
        };
        let mut partial = path.as_os_str().to_owned();
        partial.push(".tmp");
        let partial = PathBuf::from(partial);
        // What a dump names is nobody else's business, and it may hold secrets.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
        let file = BufWriter::with_capacity(BUFFER, file.map_err(|e| failed("create", &partial, &e))?);
        let sink = match form(path) {
            Form::Plain => Sink::Plain(file),
            Form::Gzip => Sink::Gzip(Box::new(GzEncoder::new(file, Compression::new(LEVEL)))),
            Form::Zstd => Sink::Zstd(zstd::Encoder::new(file, LEVEL as i32).map_err(|e| failed("compress into", &partial, &e))?),
        };
        Ok(DumpOutput { sink, names: Some((partial, path.into())) })
    }

    /// Ends the file, makes it durable and gives it its name.
    pub fn finish(self) -> Result<(), VolumeError> {
        let end = || -> io::Result<Option<File>> {
            let file = match self.sink {
                Sink::Stdout(mut out) => {
                    out.flush()?;
                    return Ok(None);
                }
                Sink::Plain(file) => file,
                Sink::Gzip(encoder) => encoder.finish()?,
                Sink::Zstd(encoder) => encoder.finish()?,
            };
            file.into_inner().map(Some).map_err(io::IntoInnerError::into_error)
        };
        let Some((partial, path)) = self.names else {
            return end().map(|_| ()).map_err(|e| failed("write to", Path::new("the standard output"), &e));
        };
        let file = end().map_err(|e| failed("write", &partial, &e))?;
        file.map_or(Ok(()), |file| file.sync_all()).map_err(|e| failed("write", &partial, &e))?;
        fs::rename(&partial, &path).map_err(|e| failed("rename to", &path, &e))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| failed("make durable", &path, &e))
    }

    /// Removes what was written.
    pub fn discard(self) {
        if let Some((partial, _)) = &self.names {
            // If it stays it is not taken for a dump, by its name.
            let _ = fs::remove_file(partial);
        }
    }
}

impl Write for DumpOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Stdout(out) => out.write(bytes),
            Sink::Plain(out) => out.write(bytes),
            Sink::Gzip(out) => out.write(bytes),
            Sink::Zstd(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Stdout(out) => out.flush(),
            Sink::Plain(out) => out.flush(),
            Sink::Gzip(out) => out.flush(),
            Sink::Zstd(out) => out.flush(),
        }
    }
}

/// A file that has no name and goes with its descriptor, in the directory of temporary files.
pub fn nameless() -> Result<File, VolumeError> {
    let temp = std::env::temp_dir();
    let open = |options: &mut OpenOptions| options.read(true).write(true).mode(0o600).clone();
    match open(&mut OpenOptions::new()).custom_flags(libc::O_TMPFILE).open(&temp) {
        Ok(file) => return Ok(file),
        // Some filesystems cannot make one without a name.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
        Err(error) => return Err(failed("make a temporary file in", &temp, &error)),
    }
    let path = temp.join(format!(".pando-{}-{:016x}", std::process::id(), SystemRandom.u64()));
    let file = open(&mut OpenOptions::new()).create_new(true).open(&path).map_err(|e| failed("create", &path, &e))?;
    fs::remove_file(&path).map_err(|e| failed("remove", &path, &e))?;
    Ok(file)
}

/// A dump that is written into a nameless file, compressed.
pub struct Spool(GzEncoder<BufWriter<File>>);

impl Spool {
    /// An empty one.
    pub fn create() -> Result<Spool, VolumeError> {
        Ok(Spool(GzEncoder::new(BufWriter::with_capacity(BUFFER, nameless()?), Compression::new(LEVEL))))
    }

    /// Ends the dump. The file is read from its beginning.
    pub fn finish(self) -> Result<File, VolumeError> {
        let file = self.0.finish().and_then(|file| file.into_inner().map_err(io::IntoInnerError::into_error));
        file.map_err(|e| failed("write a temporary file in", &std::env::temp_dir(), &e))
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A dump to be read more than once.
pub struct DumpInput {
    file: File,
    path: PathBuf,
    form: Form,
}

impl DumpInput {
    /// A file, or for `None` the standard input, which is copied to a file without a name first.
    pub fn open(path: Option<&Path>) -> Result<DumpInput, VolumeError> {
        let shown = path.unwrap_or(Path::new("the standard input"));
        let mut input: Box<dyn Read> = match path {
            None => Box::new(io::stdin()),
            Some(path) => {
                let file = File::open(path).map_err(|e| failed("open", path, &e))?;
                if file.metadata().map_err(|e| failed("open", path, &e))?.is_file() {
                    return Ok(DumpInput { file, path: path.into(), form: form(path) });
                }
                Box::new(file)
            }
        };
        let mut copy = nameless()?;
        io::copy(&mut input, &mut copy).map_err(|e| failed("copy", shown, &e))?;
        Ok(DumpInput { file: copy, path: shown.into(), form: form(shown) })
    }

    /// A file that holds a dump compressed with gzip; `name` is for messages.
    pub fn gzip(file: File, name: &str) -> DumpInput {
        DumpInput { file, path: name.into(), form: Form::Gzip }
    }

    /// The same, decrypted if it is encrypted.
    pub fn decrypted(self, pem: &str, algorithm: Option<&str>) -> Result<DumpInput, VolumeError> {
        let passphrase = std::env::var("JFS_RSA_PASSPHRASE").ok();
        let encryption = Encryption::new(algorithm.unwrap_or_default(), pem, passphrase.as_deref());
        let encryption = encryption.map_err(|why| VolumeError::Refused(format!("cannot use the key: {why}")))?;
        let file = decrypted(self.file, Some(&encryption), &self.path.display().to_string())?;
        Ok(DumpInput { file, ..self })
    }

    /// From the beginning.
    pub fn reader(&mut self) -> Result<Box<dyn BufRead>, VolumeError> {
        let why = |e: io::Error| failed("read", &self.path, &e);
        let mut file = self.file.try_clone().map_err(why)?;
        file.rewind().map_err(why)?;
        let file = BufReader::with_capacity(BUFFER, file);
        Ok(match self.form {
            Form::Plain => Box::new(file),
            Form::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(file))),
            Form::Zstd => Box::new(BufReader::with_capacity(BUFFER, zstd::Decoder::with_buffer(file).map_err(why)?)),
        })
    }
}
