//! Images and data sets that unpack to more than they are worth.

use super::*;
use std::io::Write;

fn gzip(path: &Path, head: &[u8], zeros: usize) {
    let file = std::fs::File::create(path).unwrap();
    let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    out.write_all(head).unwrap();
    let block = vec![0; 1 << 20];
    (0..zeros >> 20).for_each(|_| out.write_all(&block).unwrap());
    out.finish().unwrap();
}

/// The commands that read images refuse them; the message names the file.
#[track_caller]
fn refused_as_images(path: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let (m, out) = (ancestor(), folder.path().join("out.onnx"));
    let name = path.file_name().and_then(|n| n.to_str()).unwrap();
    refused(&["condense", text(&m), "--images", text(path), "--runtime", "tract", "-o", text(&out)], &[name, "hint: "]);
    assert!(!out.exists());
}

#[test]
fn pictures_that_claim_to_be_huge() {
    let folder = tempfile::tempdir().unwrap();
    let crc = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_be_bytes()
    };
    let chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc(&body)].concat()
    };
    let pixels = {
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(&vec![0; 1 << 22]).unwrap();
        out.finish().unwrap()
    };
    for side in [30_000u32, 65_000, u32::MAX >> 1] {
        let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
        let png = [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header), &chunk(b"IDAT", &pixels), &chunk(b"IEND", &[])]
            .concat();
        let path = folder.path().join("huge.png");
        std::fs::write(&path, png).unwrap();
        refused_as_images(&path);
    }
    // GIF, BMP and JPEG say their sides in their first bytes.
    let gif =
        [&b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;"[..]].concat();
    let bmp = {
        let mut header = vec![b'B', b'M', 58, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0];
        header.extend(60_000i32.to_le_bytes());
        header.extend(60_000i32.to_le_bytes());
        header.extend([1, 0, 24, 0]);
        header.extend([0; 28]);
        header
    };
    let jpeg =
        [&b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\"\0\x02\x11\x01\x03\x11\x01\xff\xd9"[..]].concat();
    for (name, bytes) in [("huge.gif", gif), ("huge.bmp", bmp), ("huge.jpg", jpeg)] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        refused_as_images(&path);
    }
}

#[test]
fn packed_idx_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images-idx3-ubyte.gz");
    // What the header announces is what is unpacked, and no more than a packed file may hold.
    let header = |count: u32, side: u32| {
        [&[0, 0, 8, 3][..], &count.to_be_bytes(), &side.to_be_bytes(), &side.to_be_bytes()].concat()
    };
    gzip(&path, &header(u32::MAX, 28), 1 << 30);
    refused_as_images(&path);
    gzip(&path, &header(u32::MAX, u32::MAX), 1 << 20);
    refused_as_images(&path);
    gzip(&path, &header(2, 28), 1 << 30);
    refused_as_images(&path);
}

#[test]
fn packed_archives() {
    let folder = tempfile::tempdir().unwrap();
    // A shard of WebDataset with one file of a gigabyte.
    let shard = folder.path().join("shard.tar.gz");
    let mut header = tar::Header::new_ustar();
    header.set_path("0.png").unwrap();
    header.set_size(2 << 30);
    header.set_cksum();
    gzip(&shard, header.as_bytes(), 2 << 30);
    refused_as_images(&shard);
    // A member of an NPZ archive, and an array whose header announces what is not there.
    let npz = folder.path().join("images.npz");
    let mut out = zip::ZipWriter::new(std::fs::File::create(&npz).unwrap());
    out.start_file("images.npy", zip::write::SimpleFileOptions::default()).unwrap();
    let mut npy = b"\x93NUMPY\x01\0\x76\0".to_vec();
    let text = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 28, 28), }";
    npy.extend(format!("{text:<117}\n").bytes());
    out.write_all(&npy).unwrap();
    let block = vec![0; 1 << 20];
    (0..784).for_each(|_| out.write_all(&block).unwrap());
    out.finish().unwrap();
    refused_as_images(&npz);
    let alone = folder.path().join("images.npy");
    std::fs::write(&alone, &npy).unwrap();
    refused_as_images(&alone);
}

/// One picture in a dictionary that every row of the file names.
#[test]
fn parquet_whose_rows_are_one_large_value() {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let schema = parquet::schema::parser::parse_message_type("message m { required binary image; }").unwrap();
    let properties = WriterProperties::builder().set_dictionary_page_size_limit(1 << 30).build();
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema.into(), properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let value = ByteArray::from(vec![0u8; 16 << 20]);
    for _ in 0..50 {
        column.typed::<ByteArrayType>().write_batch(&vec![value.clone(); 40], None, None).unwrap();
    }
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < 64 << 20);
    refused_as_images(&path);
}

/// Text that is read whole: a preprocessing configuration, a list of descendants, a study.
#[test]
fn endless_text() {
    let folder = tempfile::tempdir().unwrap();
    let m = ancestor();
    let out = folder.path().join("out.onnx");
    let deep = folder.path().join("deep.json");
    std::fs::write(&deep, "[".repeat(1 << 20)).unwrap();
    refused(&["grow", text(&m), "--no-images", "--batch", text(&deep), "-o", text(&out)], &["hint: "]);
    let mut spoiled = Model::open(&m).unwrap();
    spoiled.set_metadata("offshoot.learngene", "[".repeat(1 << 20));
    let path = folder.path().join("gene.onnx");
    spoiled.write(&path).unwrap();
    refused(&["grow", text(&path), "-o", text(&out)], &["cannot be read"]);
    spoiled.set_metadata("offshoot.learngene", "");
    spoiled.proto.metadata_props.retain(|p| p.key() != "offshoot.learngene");
    spoiled.set_metadata("offshoot.preprocess", "{".repeat(1 << 20));
    spoiled.write(&path).unwrap();
    let images = root().join("fixtures/fashion-images.idx3-ubyte");
    refused(&["density", text(&path), "--images", text(&images), "--runtime", "tract"], &["hint: "]);
}
