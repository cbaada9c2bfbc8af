"""Label and confidence of recordings, with onnxruntime and soundfile only: python run_onnx.py model.onnx *.wav"""

import json
import sys

import onnxruntime
import soundfile

model, *paths = sys.argv[1:] if sys.argv[2:] else sys.exit("python run_onnx.py model.onnx *.wav")
session = onnxruntime.InferenceSession(model)
about = session.get_modelmeta().custom_metadata_map
classes, clip = json.loads(about["classes"]), session.get_inputs()[0].shape[1]
for path in paths:
    samples, rate = soundfile.read(path, frames=clip, fill_value=0, dtype="float32", always_2d=True)
    if rate != int(about["sample_rate"]):
        raise SystemExit(f"{path}: {rate} Hz; resample it to {about['sample_rate']} Hz")
    (probs,) = session.run(None, {"waveform": samples.mean(axis=1)[None]})[0]
    print(path, classes[probs.argmax()] if probs.max() <= 1 else "(not a finite recording)", f"{probs.max():.4f}")
