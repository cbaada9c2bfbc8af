"""Label and confidence of recordings, with onnxruntime and soundfile only: python run_onnx.py model.onnx *.wav"""

import json
import sys

import onnxruntime
import soundfile

if len(sys.argv) < 3:
    raise SystemExit("python run_onnx.py model.onnx *.wav")
session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
classes, clip = json.loads(about["classes"]), session.get_inputs()[0].shape[1]
for path in sys.argv[2:]:
    samples, rate = soundfile.read(path, frames=clip, fill_value=0, dtype="float32", always_2d=True)
    if rate != int(about["sample_rate"]):
        raise SystemExit(f"{path}: {rate} Hz; resample it to {about['sample_rate']} Hz")
    (probs,) = session.run(None, {"waveform": samples.mean(axis=1)[None]})[0]
    print(path, classes[probs.argmax()] if probs.max() <= 1 else "(not a finite recording)", f"{probs.max():.4f}")
