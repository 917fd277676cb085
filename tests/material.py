"""Small files of every layout that a dataset is read from, written by a seed."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from sleepai.core import Hypnogram, Recording
from sleepai.preprocessing.edf import write_edf

TYPES = ("eeg", "eeg", "eog", "emg")


# Nights


def nights(folder, people=("ann", "bob"), channel="C4-M1"):
    """A folder of EDF files with hypnograms as text: twenty minutes each."""
    folder.mkdir(exist_ok=True, parents=True)
    for k, person in enumerate(people):
        rng, stages = np.random.default_rng(k), np.repeat(["W", "N1", "N2", "N3", "R"], 8)
        x = np.concatenate([rng.normal(0, 8 + 6 * i, 3000) for i in range(5) for _ in range(8)])
        write_edf(Recording(x[None], 100, (channel,), ("eeg",), person), folder / f"{person}.edf")
        (folder / f"{person}.txt").write_text("\n".join(stages) + "\n")
    return folder


def cassette(folder):
    """One night as Sleep-EDF publishes its cassettes: the first hour of a simulated one."""
    from sleepai.datasets.simulated import Simulated, rk_annotations, write_sleep_edf

    sim = Simulated(1, nights=1)
    whole, scored = sim.read(sim.records()[0])
    hour = Recording(whole.signals[:, : 120 * 3000], 100, whole.ch_names, whole.ch_types, "SC400")
    notes = rk_annotations(Hypnogram(scored.stages[:120]))
    write_sleep_edf(hour, notes, folder / "sleep-cassette", "SC4001E0")
    return folder


def telemetry(folder):
    """One night of ten minutes as Sleep-EDF publishes its telemetry study."""
    from sleepai.datasets.sleep_edf import CHANNELS

    folder.mkdir(exist_ok=True, parents=True)
    x = np.random.default_rng(0).normal(0, 20, (4, 20 * 3000))
    notes = [(0, 300, "Sleep stage W"), (300, 300, "Sleep stage 2")]
    night = Recording(x, 100, CHANNELS, TYPES, "ST701")
    write_edf(night, folder / "ST7011J0-PSG.edf")
    write_edf(night, folder / "ST7011JP-Hypnogram.edf", annotations=notes)
    return folder


def cassette_scoring(folder):
    """The label table of two cassette nights and the times of one."""
    from sleepai.datasets.real_hypnograms import LABELS, NIGHT_TIMES
    from sleepai.datasets.simulated import Simulated, rk_annotations

    sim, notes = Simulated(2, nights=1), []
    for name, r in zip(("SC4001E0", "SC4011E0"), sim.records(), strict=True):
        stages = np.r_[np.zeros(60, int), sim.hypnogram(r).stages[:60], -np.ones(4, int)]
        notes.append(rk_annotations(Hypnogram(stages)).assign(record=name))
    table = pd.concat(notes).rename(columns=dict(label="annotation"))
    table.to_csv(folder / LABELS, index=False)
    when = "record,rec_start_time,rec_stop_time,lights_off_time,lights_on_time\n"
    (folder / NIGHT_TIMES).write_text(when + "SC4001E0,16:00:00,17:00:00,16:20:00,16:50:00\n")
    return folder


def cassette_features(folder):
    """Two nights of published features."""
    from sleepai.datasets.sleep_edf_features import FEATURE_COLUMNS

    for k, name in enumerate(("SC4001E0", "SC4011E0")):
        rng = np.random.default_rng(k)
        X = rng.normal(size=(40, len(FEATURE_COLUMNS)))
        np.savez(folder / f"{name}.npz", X=X, y=np.repeat([0, 1, 2, 3, 4], 8))
    return folder


def excerpts(folder):
    """One excerpt of half an hour at 50 Hz, as DREAMS publishes it."""
    x = np.random.default_rng(0).normal(0, 20, 90_000).round(1)
    (folder / "excerpt9.txt").write_text("[C3-A1]\n" + "\n".join(map(str, x)) + "\n")
    labels = np.repeat([5, 3, 2, 1, 4], 72)
    (folder / "Hypnogram_excerpt9.txt").write_text("[hypnogram]\n" + "\n".join(map(str, labels)) + "\n")
    return folder


def scorers(folder, nights=2, epochs=30, length=None):
    """A copy of the DOD repository in small."""
    rng = np.random.default_rng(5)
    raters = [f"scorers/dodh/scorer_{k}" for k in range(1, 6)]
    raters += [f"results/dodh/base_models/{m}" for m in ("SimpleNet", "Chambon_et_Al")]
    for n in range(nights):
        for rater in raters:
            size = length if length and rater.startswith("results") else epochs
            path = folder / rater / f"night-{n:02d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rng.integers(0, 5, size).tolist()))
    return folder


def events(folder, stage=2):
    """BOAS in small: two recordings of one person."""
    t = pd.DataFrame(dict(onset=30 * np.arange(20), duration=30, stage_hum=stage, stage_ai=2))
    for name in ("sub-1", "sub-2"):
        (folder / name / "eeg").mkdir(parents=True)
        for what in ("psg", "headband"):
            shown = t if what == "psg" else t.drop(columns="stage_hum")
            path = folder / name / "eeg" / f"{name}_task-Sleep_acq-{what}_events.tsv"
            shown.to_csv(path, sep="\t", index=False)
    people = dict(participant_id=["sub-1", "sub-2"], age=["n/a", 30], sex="F", bmi=20, pid=7)
    pd.DataFrame(people).to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


# Hearts


def tape(folder):
    """Three records in the form of MIT-BIH: 201 and 202 of one man, and 114 with its leads swapped."""
    import wfdb

    rng, t = np.random.default_rng(0), np.arange(60 * 360) / 360
    for name in ("114", "201", "202"):
        peaks = np.cumsum(rng.normal(280, 10, 70)).astype(int)
        x = np.exp(-(((t[:, None] - peaks / 360) / 0.02) ** 2)).sum(1) + rng.normal(0, 0.01, len(t))
        leads = ["V5", "MLII"] if name == "114" else ["MLII", "V1"]
        p = np.stack([-x, x] if name == "114" else [x, -x], 1)
        how = dict(fs=360, units=["mV"] * 2, fmt=["212"] * 2, adc_gain=[200] * 2, baseline=[0] * 2)
        wfdb.wrsamp(name, sig_name=leads, p_signal=p, write_dir=str(folder), **how)
        symbols = ["N"] * 60 + ["V", "A", "+", "~", "F"] + ["N"] * 5
        wfdb.wrann(name, "atr", peaks, symbols, write_dir=str(folder))
    return folder


def ecg5000_table():
    rng = np.random.default_rng(1)
    t = pd.DataFrame(rng.normal(size=(20, 140)), columns=[f"t{k}" for k in range(140)])
    return t.assign(class5=np.arange(20) % 5 + 1, split=["train"] * 8 + ["test"] * 12)


def ecg5000(folder):
    from sleepai.datasets.ecg5000 import TABLE

    ecg5000_table().to_csv(folder / TABLE, index=False)
    return folder


def beats_table():
    """Sixty beats of six patients in three classes."""
    rng = np.random.default_rng(0)
    t = pd.DataFrame(rng.normal(size=(60, 8)), columns=[f"t{k}" for k in range(8)])
    return t.assign(label=np.arange(60) % 3, patient=np.repeat(list("ABCDEF"), 10))


def beats(folder):
    beats_table().to_csv(folder / "mine.csv", index=False)
    return folder / "mine.csv"


def apnea_nights():
    """Four simulated nights: times of the beats, heart rates, one label per minute."""
    from sleepai.datasets.simulated_apnea import simulated_night

    return {name: simulated_night(k) for name, k in dict(a01=0, c01=9, a21=2, c11=10).items()}


def heart_rates(folder, **changed):
    """The archive of heart rates with four simulated nights, arrays changed, or left out when None."""
    from sleepai.datasets.apnea_ecg import HR_FILE

    arrays = {}
    for name, (t, hr, apnea) in apnea_nights().items():
        arrays |= {f"{name}_t": t.astype("float32"), f"{name}_hr": hr.astype("float32"), f"{name}_apn": apnea}
    folder.mkdir(exist_ok=True, parents=True)
    np.savez(folder / HR_FILE, **{k: v for k, v in (arrays | changed).items() if v is not None})
    return folder


# Stays in intensive care


STAY = "Time,Parameter,Value\n00:00,Age,{age}\n00:00,Gender,1\n00:00,ICUType,3\n00:10,HR,{hr}\n"
OUTCOMES = "RecordID,In-hospital_death\n1,0\n2,1\n"
GOOD = STAY.format(age=60, hr=80)


def challenge(folder, outcomes=OUTCOMES, one=GOOD):
    """Two stays in the form of the PhysioNet challenge of 2012."""
    (folder / "set-a").mkdir(parents=True)
    (folder / "set-a" / "1.txt").write_text(one)
    (folder / "set-a" / "2.txt").write_text(STAY.format(age=50, hr=90))
    (folder / "Outcomes-a.txt").write_text(outcomes)
    return folder


def eicu(folder, task, **changed):
    """Two stays in the form of a task on eICU's demo; `changed` maps a table's name to what becomes of it."""
    here = folder / "demo_data" / task / "eicu_demo"
    here.mkdir(parents=True)
    stay, hour = np.repeat([1, 2], 6), np.tile(np.arange(6), 2)
    dyn = dict(stay_id=stay, time=pd.to_timedelta(hour, "h"), hr=80.0, map=[70.0, 70, 70, 60, 70, 70] * 2)
    sta = dict(stay_id=[1, 2], age=[60, 70], sex=["Male", "Female"], height=170.0, weight=70.0)
    outc = dict(stay_id=[1, 2], label=[0, 1])
    if task == "aki":
        outc = dict(stay_id=stay, time=dyn["time"], label=[0] * 6 + [0, 0, 0, 0, 1, 1])
    for name, columns in dict(dyn=dyn, sta=sta, outc=outc).items():
        changed.get(name, lambda t: t)(pd.DataFrame(columns)).to_parquet(here / f"{name}.parquet")
    return folder


def mimic(folder):
    """Four admissions in the form of MIMIC-IV's tables."""
    days, patients = (1, 2, 3, 4), "1,F,70\n2,M,61\n3,F,55\n4,M,80\n"
    stays = [f"{k},{k}0,{k}00,2150-01-0{k} 10:00:00,2150-01-0{k + 3} 10:00:00" for k in days]
    hr = [f"{k}00,2150-01-0{k} 1{h}:30:00,220045,{80 + k + h}" for k in days for h in range(1, 5)]
    lactate = ["10,2150-01-01 12:00:00,50813,2.1", "20,2150-01-02 12:00:00,50813,4.0"]
    tables = dict(
        icustays="subject_id,hadm_id,stay_id,intime,outtime\n" + "\n".join(stays),
        patients="subject_id,gender,anchor_age\n" + patients,
        admissions="hadm_id,hospital_expire_flag\n10,0\n20,1\n30,0\n40,0\n",
        diagnoses_icd="hadm_id,icd_code,icd_version\n10,I639,10\n20,4019,9\n30,43491,9\n40,I10,10\n",
        chartevents="stay_id,charttime,itemid,valuenum\n" + "\n".join(hr),
        labevents="hadm_id,charttime,itemid,valuenum\n" + "\n".join(lactate),
    )
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


# Images


def picture(path, seed, shape=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(20, 200, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def chests(folder):
    """Four chest X-rays in the published layout, one patient each."""
    for k, name in enumerate(
        (
            "train/NORMAL/IM-0001-0001",
            "train/PNEUMONIA/person1_virus_1",
            "train/PNEUMONIA/person2_bacteria_1",
            "test/NORMAL/IM-0002-0001",
            "test/PNEUMONIA/person3_bacteria_7",
            "test/PNEUMONIA/person4_virus_9",
        )
    ):
        picture(folder / "chest_xray" / f"{name}.png", k)
    return folder


def arrays(folder):
    """Twelve images in the form of MedMNIST."""
    rng, parts = np.random.default_rng(0), {}
    for split, n in dict(train=6, val=2, test=4).items():
        parts[f"{split}_images"] = rng.integers(0, 255, (n, 28, 28), np.uint8)
        parts[f"{split}_labels"] = np.arange(n)[:, None] % 2
    np.savez(folder / "pneumoniamnist.npz", **parts)
    return folder


FILMS = "mdb001 G CIRC M {x:.0f} {y:.0f} {r:.0f}\nmdb002 D NORM\n"


def films(folder, listed=FILMS, names=("mdb001.png", "mdb002.png")):
    """Two mammograms in the layout of mini-MIAS, the first with a lesion; places count from the bottom left."""
    from sleepai.datasets.mammograms import write_png
    from sleepai.datasets.simulated_mammography import simulated_film

    for k, name in enumerate(names):
        film, lesions = simulated_film([5, k], k == 0, False)
        write_png(film, folder / name)
        if lesions:
            x, y, r = lesions[0]
            listed = listed.format(x=1024 * x, y=1024 * (1 - y), r=1024 * r)
    if listed:
        (folder / "Info.txt").write_text(listed)
    return folder


def crops(folder):
    """Four marks in the layout of CBIS-DDSM, one with a mask beside its crop."""
    head = "patient_id,image view,pathology,cropped image file path,ROI mask file path\n"
    parts = dict(
        mass_case_description_train_set=[
            ("Mass-Training", "P_1", "MALIGNANT"),
            ("Mass-Training", "P_2", "BENIGN"),
        ],
        calc_case_description_test_set=[
            ("Calc-Test", "P_3", "BENIGN_WITHOUT_CALLBACK"),
            ("Calc-Test", "P_4", "MALIGNANT"),
        ],
    )
    for k, (name, rows) in enumerate(parts.items()):
        text = head
        for kind, who, what in rows:
            place = Path(f"{kind}_{who}_LEFT_CC_1/1.2.1/1.3.{who}.1/000001.dcm")
            text += f'{who},CC,{what},"{place}\n",x\n'
            picture(folder / "CBIS-DDSM" / place.with_name("1-2.png"), k, (40, 50))
        (folder / f"{name}.csv").write_text(text)
    picture(folder / "CBIS-DDSM/Mass-Training_P_1_LEFT_CC_1/1.2.1/1.3.P_1.1/1-1.png", 9, (300, 200))
    return folder


# Dataset -> writes its files into a folder and says where the dataset is to look

WRITERS = {
    "apnea-ecg": heart_rates,
    "boas": events,
    "cbis-ddsm": crops,
    "chest-xray": chests,
    "chest-xray-subtype": chests,
    "dod": scorers,
    "dreams": excerpts,
    "ecg-csv": beats,
    "ecg5000": ecg5000,
    "ecg5000-binary": ecg5000,
    "edf-folder": nights,
    "eicu-aki": lambda folder: eicu(folder, "aki"),
    "eicu-hypotension": lambda folder: eicu(folder, "los"),
    "eicu-mortality": lambda folder: eicu(folder, "mortality24"),
    "image-npz": arrays,
    "mimic-csv": mimic,
    "mimic-csv-mortality": mimic,
    "mini-mias": films,
    "mini-mias-lesion": films,
    "mini-mias-patches": films,
    "mitdb": tape,
    "physionet2012": challenge,
    "simulated-sleep-edf": cassette_scoring,
    "sleep-edf": cassette,
    "sleep-edf-features": cassette_features,
    "sleep-edf-telemetry": telemetry,
}
