"""The page's answers: the masks of `attnseg predict`, and refusals of everything else."""

import io
import json
import re
import signal
import socket
import time
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from attnseg.prediction.folder import OutputOptions, segment_folder
from attnseg.viewer import server
from attnseg.viewer.options import View
from attnseg.viewer.shown import Shown, measure_agreement
from attnseg.viewer.sides import open_sides
from attnseg.viewer.written import open_predictions
from tests.export import made as capsules
from tests.prediction.made import TILTED, organ
from tests.prediction.test_dicom import write as write_series
from tests.viewer.made import MEGABYTE, Page, program, serving

pytest.importorskip("onnxruntime")
DEFAULTS = {
    "run": None, "capsule": None, "predictions": None, "device": "cpu", "threads": 1, "port": 0,
    "idle_minutes": 30.0, "upload_mb": 50, "choices": {},
}  # fmt: skip


def graph_of(first=(0, 1, 2)):
    model = capsules.graph()
    weight = np.array(first, np.float32).reshape(3, 1, 1, 1)
    model.graph.initializer[0].raw_data = weight.tobytes()
    return model.SerializeToString()


@pytest.fixture(scope="module")
def capsule(tmp_path_factory):
    """A capsule whose network finds class b where the image is bright, and class a nowhere."""
    return capsules.write(tmp_path_factory.mktemp("capsules") / "bright.zip")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A capsule whose network finds class a where the image is dark, class b where it is bright."""
    golden = capsules.parts()
    images = np.load(io.BytesIO(golden[capsules.GOLDEN_INPUT]))
    logits = images * np.array([0, -1, 2], np.float32).reshape(3, 1, 1)
    parts = {
        capsules.MODEL: graph_of((0, -1, 2)),
        capsules.GOLDEN_OUTPUT: capsules.array(logits),
    }
    return capsules.write(tmp_path_factory.mktemp("capsules") / "both.zip", **parts)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """A capsule whose network sees intensities from -20 to 60."""
    own = {capsules.SPEC: capsules.spec(window=(-20.0, 60.0)).to_json().encode()}
    return capsules.write(tmp_path_factory.mktemp("capsules") / "windowed.zip", **own)


def sides_of(*files):
    return open_sides(View(**{**DEFAULTS, "capsule": [str(file) for file in files]}))


@pytest.fixture
def page(capsule, tmp_path):
    with serving(sides_of(capsule), tmp_path / "own") as site:
        yield Page(site)


def nifti(image=None, affine=TILTED):
    file = nib.Nifti1Image(organ() if image is None else image, affine)
    return file.to_bytes()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def as_predicted(capsule, source, output, output_type="dicom_seg"):
    """Predict by the library's own function, and return the bytes of the masks."""
    (side,) = sides_of(capsule)
    options = OutputOptions(side.rules, overlays=False, output_type=output_type)
    segment_folder(side.segmenter, [side.spec], options, source, output, "onnx")
    (path,) = [path for path in (output / "masks").rglob("*") if path.is_file()]
    return path


def test_masks_of_a_volume_are_those_of_predict(page, capsule, tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti())
    expected = as_predicted(capsule, tmp_path / "a.nii", tmp_path / "out")
    status, found = page.drop({"patients/mrs. o'hara.nii": nifti()})
    assert (status, found["lines"]) == (200, [])
    (case,) = found["cases"]
    assert case["name"] == "patients/mrs. o'hara.nii"
    (side,) = case["sides"]
    assert side["file"] == "mrs. o'hara_masks.nii"
    saved = page.get("/masks", side=0, case=0)
    assert saved == expected.read_bytes()
    voxels = np.asarray(nib.Nifti1Image.from_bytes(saved).dataobj)
    assert side["voxels"] == {"a": 0, "b": int((voxels == 2).sum())}
    assert side["ml"]["b"] == pytest.approx((voxels == 2).sum() * 0.7 * 1.3 * 5 / 1000, rel=1e-4)
    assert voxels.any()
    (warning,) = side["warnings"]
    assert warning.startswith("patients/mrs. o'hara.nii: xyzt_units")


def test_masks_of_a_dicom_folder_and_of_its_zip_are_those_of_predict(page, capsule, tmp_path):
    folder = tmp_path / "ct"
    write_series(folder, organ((4, 20, 24)))
    files = {f"ct/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    expected = as_predicted(capsule, folder, tmp_path / "out")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for dropped in (files, {"exported.ZIP.download": buffer.getvalue()}):
        status, found = page.drop(dropped)
        assert (status, found["lines"]) == (200, [])
        (case,) = found["cases"]
        assert case["name"].startswith(f"DICOM series of {len(files)} files, ct/")
        assert case["sides"][0]["file"] == "series_masks.dcm"
        saved = pydicom.dcmread(io.BytesIO(page.get("/masks", side=0, case=0)))
        wanted = pydicom.dcmread(expected)
        assert np.array_equal(saved.pixel_array, wanted.pixel_array)
        assert saved.pixel_array.any()
        assert saved.Modality == "SEG"
    assert page.drop(files, "nifti")[1]["cases"][0]["sides"][0]["file"] == "series_masks.nii.gz"
    page.drop(files, "rtstruct")
    saved = pydicom.dcmread(io.BytesIO(page.get("/masks", side=0, case=0)))
    assert saved.Modality == "RTSTRUCT"


def test_masks_of_a_picture_are_those_of_predict(page, capsule, tmp_path):
    pixels = png(np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8))
    (tmp_path / "p.png").write_bytes(pixels)
    expected = as_predicted(capsule, tmp_path / "p.png", tmp_path / "out")
    status, found = page.drop({"p.png": pixels})
    assert (status, found["lines"]) == (200, [])
    (side,) = found["cases"][0]["sides"]
    assert side["file"] == "p_masks.png"
    assert side["ml"] is None
    saved = np.array(Image.open(io.BytesIO(page.get("/masks", side=0, case=0))))
    assert np.array_equal(saved, np.array(Image.open(expected)))
    assert saved.any()
    facts = json.loads(page.get("/case", case=0))
    assert facts["shape"] == [1, 40, 50]
    assert not facts["oriented"]


def slice_of(page, **values):
    wanted = {
        "side": 0, "case": 0, "axis": 0, "at": 0, "black": 0, "white": 1, "layer": "masks",
    } | values  # fmt: skip
    return np.array(Image.open(io.BytesIO(page.get("/slice", **wanted)))).astype(int)


def test_slices_of_three_planes(page):
    """What lies at the patient's left, back and head is drawn at the right, below or above."""
    image = np.zeros((8, 10, 12), np.int16)
    image[7, 1, 10:] = 100
    page.drop({"a.nii": nifti(image, np.diag([-1.0, 1, 1, 1]))})  # left, front, head
    facts = json.loads(page.get("/case", case=0))
    assert (facts["shape"], facts["oriented"]) == ([12, 10, 8], True)
    for axis, at, corner in ((0, 11, (1, 1)), (1, 8, (0, 1)), (2, 7, (0, 1))):
        drawn = slice_of(page, axis=axis, at=at, layer="none").mean(2) > 128
        places = np.argwhere(drawn)
        assert len(places)
        assert tuple((places.mean(0) > np.array(drawn.shape) / 2).astype(int)) == corner
    assert not slice_of(page, axis=2, at=6, layer="none").any()


def test_layers_windows_and_hidden_classes(page):
    page.drop({"a.nii": nifti()})
    plain = slice_of(page, layer="none")
    assert (plain.max(2) == plain.min(2)).all()  # grey
    masks = slice_of(page)
    assert (masks.max(2) != masks.min(2)).any()
    assert np.array_equal(slice_of(page, hidden="1"), plain)
    assert np.array_equal(slice_of(page, hidden="0"), masks)
    assert (slice_of(page, layer="uncertainty") != plain).any()
    assert slice_of(page, layer="none", black=-1).mean() > plain.mean()
    assert slice_of(page, layer="none", white=2).mean() < plain.mean()


def test_two_capsules_side_by_side(capsule, other, tmp_path):
    with serving(sides_of(capsule, other), tmp_path / "own") as site:
        page = Page(site)
        _, found = page.drop({"a.nii": nifti()})
        first, second = found["cases"][0]["sides"]
        assert first["voxels"]["a"] == 0 < second["voxels"]["a"]
        agreement = json.loads(page.get("/case", case=0))["agreement"]
        assert agreement["a"] == 0
        assert agreement["b"] == 1
        assert page.get("/masks", side=0, case=0) != page.get("/masks", side=1, case=0)
        about = json.loads(page.get("/about"))
        assert [side["title"] for side in about["sides"]] == ["bright.zip", "both.zip"]


def test_each_network_has_its_own_window(capsule, windowed, tmp_path):
    with serving(sides_of(capsule, windowed), tmp_path / "own") as site:
        page = Page(site)
        page.drop({"a.nii": nifti()})
        first, second = json.loads(page.get("/case", case=0))["windows"]
        assert second == [-20, 60] != first
        both = [slice_of(page, side=side, at=4, layer="none") for side in (0, 1)]
        assert (both[0] != both[1]).any()


def test_agreement():
    spec = capsules.spec()
    maps = (np.array([[[1, 1, 2, 0]]]), np.array([[[1, 2, 2, 0]]]))
    shown = [
        Shown(np.zeros((1, 1, 4, 1)), each.astype(np.uint8), None, None, (0,), (1,), spec.labels)
        for each in maps
    ]
    assert measure_agreement(*shown) == pytest.approx({"a": 2 / 3, "b": 2 / 3})


REFUSED = {  # method, path, headers, status
    "no secret": ("GET", "/about", {server.SECRET_HEADER: None}, 401),
    "no secret for a path that does not exist": ("GET", "/x", {server.SECRET_HEADER: None}, 401),
    "a wrong secret": ("GET", "/cases", {server.SECRET_HEADER: "x" * 43}, 401),
    "no secret, to segment": ("POST", "/segment", {server.SECRET_HEADER: ""}, 401),
    "no secret, to drop": ("PUT", "/file?name=a", {server.SECRET_HEADER: ""}, 401),
    "no secret, to stay": ("GET", "/alive", {server.SECRET_HEADER: ""}, 401),
    "the secret in the address": ("GET", "/about?secret=SECRET", {server.SECRET_HEADER: None}, 401),
    "the secret as a cookie": (
        "GET", "/about", {server.SECRET_HEADER: None, "Cookie": "secret=SECRET"}, 401,
    ),
    "another origin": ("GET", "/about", {"Origin": "http://evil.example"}, 403),
    "another port of this machine": ("GET", "/about", {"Origin": "http://127.0.0.1:1"}, 403),
    "a sandboxed page": ("GET", "/about", {"Origin": "null"}, 403),
    "too many fields": ("GET", "/?" + "&".join(f"a{n}=1" for n in range(21)), {}, 400),
    "another site, as browsers say": ("GET", "/about", {"Sec-Fetch-Site": "cross-site"}, 403),
    "another port, as browsers say": ("GET", "/", {"Sec-Fetch-Site": "same-site"}, 403),
    "another host": ("GET", "/about", {"Host": "evil.example"}, 421),
    "another host, even of the empty page": ("GET", "/", {"Host": "evil.example"}, 421),
    "another port": ("GET", "/", {"Host": "127.0.0.1:1"}, 421),
    "no host": ("GET", "/", {"Host": None}, 421),
    "a path upwards": ("GET", "/../view.py", {}, 404),
    "a path upwards in escapes": ("GET", "/%2e%2e/view.py", {}, 404),
    "a path upwards in doubled escapes": ("GET", "/%252e%252e%252fview.py", {}, 404),
    "an absolute path": ("GET", "//etc/passwd", {}, 404),
    "a file of the program": ("GET", "/view.html", {}, 404),
    "an address of another program": ("GET", "http://evil.example/", {}, 404),
    "a case that does not exist": ("GET", "/masks?side=0&case=0", {}, 404),
    "a case by a path": ("GET", "/masks?side=0&case=../x", {}, 404),
    "a negative side": ("GET", "/masks?side=-1&case=0", {}, 404),
    "to segment nothing": ("POST", "/segment?output_type=nifti", {}, 422),
    "to drop before it was begun": ("PUT", "/file?name=a", {}, 409),
    "to delete": ("DELETE", "/about", {}, 405),
    "options": ("OPTIONS", "/about", {}, 405),
    "a head": ("HEAD", "/", {}, 405),
    "to post to what is read": ("POST", "/about", {}, 404),
    "to put to what is read": ("PUT", "/about", {}, 404),
    "a method that nobody knows": ("BREW", "/", {}, 501),
    "no length": ("PUT", "/file?name=a", {"Content-Length": None}, 411),
    "a length that is none": ("PUT", "/file?name=a", {"Content-Length": "-1"}, 411),
    "chunks": ("PUT", "/file?name=a", {"Transfer-Encoding": "chunked"}, 411),
    "a token again": ("POST", "/open", {}, 401),
    "a long token": ("POST", "/open", {"Content-Length": "1000"}, 413),
}  # fmt: skip


def test_a_link_of_another_page_may_be_followed(page):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    for place, status in (("document", 200), ("iframe", 403)):
        answer = page.ask("GET", "/", headers={**headers, "Sec-Fetch-Dest": place})
        assert answer[0] == status


def test_requests_that_are_refused(page):
    wrong = {}
    for name, (method, path, headers, status) in REFUSED.items():
        path = path.replace("SECRET", page.secret)
        headers = {
            key: value and value.replace("SECRET", page.secret) for key, value in headers.items()
        }
        body = (
            b"" if method in ("PUT", "POST") and headers.get("Content-Length", "") == "" else None
        )
        if "Content-Length" in headers and headers["Content-Length"] is None:
            body = None
        found, answer = page.ask(method, path, body=body, headers=headers)
        if found != status or b"Traceback" in answer:
            wrong[name] = (found, answer[:100])
    assert wrong == {}
    assert page.ask("GET", "/about")[0] == 200  # It goes on.


def test_what_is_sent_along(page):
    assert page.ask("GET", "/", headers={server.SECRET_HEADER: None})[0] == 200
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in page.headers
    assert "Access-Control-Allow-Origin" not in page.headers


def test_the_token_is_spent_by_the_first_page_only(capsule, tmp_path):
    with serving(sides_of(capsule), tmp_path / "own") as site:
        token, wrong = site.token, Page.__new__(Page)
        wrong.site = site
        assert wrong.ask("POST", "/open", body="x" * 43)[0] == 401
        assert len(token) >= 43
        assert Page(site).ask("GET", "/about")[0] == 200
        assert wrong.ask("POST", "/open", body=token)[0] == 401


def test_too_much_is_refused(capsule, tmp_path):
    with serving(sides_of(capsule), tmp_path / "own", most=MEGABYTE) as site:
        page = Page(site)
        assert page.drop({"a.nii": bytes(MEGABYTE + 1)})[0] == 413
        half = bytes(MEGABYTE // 2 + 1)
        assert page.drop({"a": half, "b": half})[0] == 413
        assert (
            page.ask("PUT", "/file", {"name": "a"}, None, {"Content-Length": str(10**12)})[0] == 413
        )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb", bytes(100 * MEGABYTE))
        assert len(buffer.getvalue()) < MEGABYTE
        status, line = page.drop({"bomb.zip": buffer.getvalue()})
        assert (status, "upload_mb" in line) == (413, True)
        assert sum(p.stat().st_size for p in (tmp_path / "own").rglob("*") if p.is_file()) < (
            1.1 * MEGABYTE
        )
        assert page.drop({"a.nii": nifti()})[0] == 200


def test_names_never_become_paths(page, tmp_path):
    evil = (
        "../../up.nii", "/etc/absolute.nii", "..\\up.nii", "a\0b.nii", "x" * 5000 + ".nii",
        "case1_day0/scans/../../../../up.nii", "\u202egnp.nii", "../case1_day0/scans/slice_1.png",
    )  # fmt: skip
    status, found = page.drop(dict.fromkeys(evil, nifti()))
    assert status == 200
    own = tmp_path / "own"
    names = {path.name for path in (own / "dropped").iterdir()}
    assert all(re.fullmatch(r"\d{5}\.(nii|png)", name) for name in names)
    assert len(names) == len(evil) - 1  # A hidden one is passed over.
    assert not [path for path in tmp_path.rglob("*up*") if path.is_file()]
    assert all(name.isprintable() for case in found["cases"] for name in [case["name"]])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in evil:
            archive.writestr(name, nifti())
    assert page.drop({"evil.zip": buffer.getvalue()})[0] == 200
    assert not [path for path in tmp_path.rglob("*up*") if path.is_file()]


def test_hostile_files_become_lines(page, tmp_path):
    rng = np.random.default_rng(0)
    good = nifti()
    dropped = {"cut.nii": good[:400], "empty.png": b"", "noise.dcm": rng.bytes(5000)}
    status, found = page.drop(dropped | {"good.nii": good})
    assert status == 200
    assert [case["name"] for case in found["cases"]] == ["good.nii"]
    assert len(found["lines"]) == 3
    assert all(any(line.startswith(name) for line in found["lines"]) for name in dropped)
    assert not any(str(tmp_path) in line for line in found["lines"])
    status, found = page.drop({"notes.txt": b"no image"})
    assert (status, found["cases"], len(found["lines"])) == (200, [], 1)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nii", good)
    data = bytearray(buffer.getvalue())
    for _ in range(40):
        spoilt = bytearray(data)
        for at in rng.integers(4, len(data), 20):
            spoilt[at] = rng.integers(256)
        status, answer = page.drop({"spoilt.zip": bytes(spoilt)})
        assert status in (200, 413, 422), answer
    status, answer = page.drop({"half.nii.gz": b"\x1f\x8b" + rng.bytes(99)})
    assert (status, len(answer["lines"])) == (200, 1)
    assert page.drop({"good.nii": good})[0] == 200


def test_a_file_cut_off_on_its_way(page):
    page.ask("POST", "/upload")
    with socket.create_connection(("127.0.0.1", page.site.server_port)) as one:
        one.sendall(
            f"PUT /file?name=a.nii HTTP/1.1\r\nHost: 127.0.0.1:{page.site.server_port}\r\n"
            f"{server.SECRET_HEADER}: {page.secret}\r\nContent-Length: 1000\r\n\r\nabc".encode()
        )
        one.shutdown(socket.SHUT_WR)
        assert b" 400 " in one.makefile("rb").readline()
    assert page.ask("POST", "/segment", {"output_type": "nifti"})[0] == 422


def test_written_predictions_are_shown_as_they_were(page, capsule, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.nii").write_bytes(nifti())
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    (source / "p.png").write_bytes(png(pixels))
    write_series(source / "ct", organ((4, 20, 24)))
    (side,) = sides_of(capsule)
    for output_type in ("dicom_seg", "nifti"):
        output = tmp_path / output_type
        options = OutputOptions(side.rules, uncertainty=True, output_type=output_type)
        segment_folder(side.segmenter, [side.spec], options, source, output, "onnx")
        written = open_predictions(output)
        assert list(written.cases) == ["a", "ct", "p"]
        files = {
            f"{path.relative_to(source)}": path.read_bytes()
            for path in source.rglob("*")
            if path.is_file()
        }
        page.drop(files)
        mine = {case.facts["kind"]: case for case in page.site.desk.sides[0].cases.values()}
        for case in written.cases.values():
            read, expected = case.load(), mine[case.facts["kind"]].load()
            assert np.array_equal(read.label_map, expected.label_map)
            assert read.label_map.any()
            assert np.array_equal(read.image, expected.image)
            assert read.spacing == expected.spacing
            assert np.abs(read.uncertainty.astype(int) - expected.uncertainty).max() <= 1
        with serving([written], tmp_path / f"own_{output_type}") as site:
            looking = Page(site)
            assert looking.ask("POST", "/upload")[0] == 404  # It is only looked at.
            assert len(json.loads(looking.get("/cases"))["cases"]) == 3
            assert looking.get("/masks", side=0, case=0) == (output / "masks/a.nii").read_bytes()
            (source / "a.nii").rename(tmp_path / "away.nii")
            status, line = looking.ask("GET", "/case", {"case": 0})
            assert (status, b"not there any more" in line) == (422, True)
            (tmp_path / "away.nii").rename(source / "a.nii")


def test_it_ends_when_the_page_is_closed_but_not_when_it_is_loaded_again(capsule, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    barrier = (
        f"import sys, tempfile; sys.modules['torch'] = None; tempfile.tempdir = {str(temporary)!r}"
    )
    with program(tmp_path, f"capsule={capsule}", "threads=1", barrier=barrier) as (
        process,
        address,
    ):
        port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#([\w-]+)", address).groups()

        class Remote:
            server_port = int(port)

        Remote.token = token
        page = Page(Remote)
        assert page.drop({"a.nii": nifti()})[1]["cases"]
        (folder,) = temporary.glob("attnseg-view-*")
        assert oct(folder.stat().st_mode)[-3:] == "700"
        page.alive.close()
        page.stay()
        time.sleep(server.GRACE + 2)
        assert process.poll() is None
        page.alive.close()
        assert process.wait(60) == 0
        assert "The page was closed" in process.stdout.read()
        assert process.stderr.read() == ""
        assert not list(temporary.iterdir())


def test_it_ends_by_a_signal_and_removes_what_was_dropped(capsule, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    barrier = (
        f"import sys, tempfile; sys.modules['torch'] = None; tempfile.tempdir = {str(temporary)!r}"
    )
    with program(tmp_path, f"capsule={capsule}", barrier=barrier) as (process, _):
        assert list(temporary.iterdir())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not list(temporary.iterdir())


def test_it_ends_when_nobody_uses_it(capsule, tmp_path):
    with serving(sides_of(capsule), tmp_path / "own", idle=1.0) as site:
        assert not site.ended.is_set()
        assert site.ended.wait(60)


def test_nobody_else_can_reach_it(page):
    assert page.site.server_address[0] == "127.0.0.1"


FAULTS = {
    "nothing to view": ({}, "run: give one of"),
    "two at once": ({"run": "x", "predictions": "y"}, "run: give one of"),
    "three capsules": ({"capsule": ["a", "b", "c"]}, "capsule"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_options(fault):
    values, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        View(**{**DEFAULTS, **values})
