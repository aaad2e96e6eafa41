"""The model behind MLServer, as a runtime that its ``model-settings.json`` names."""

# mypy: disable-error-code="import-not-found,misc"
from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from peer_session import INPUT, load


class Peer(MLModel):
    """In the server's own process, which batches."""

    async def load(self) -> bool:
        self.session = load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (tensor,) = payload.inputs
        (found,) = self.session.run(None, {INPUT: np.array(tensor.data, np.float32).reshape(tensor.shape)})
        output = ResponseOutput(name="logits", shape=list(found.shape), datatype="FP32", data=found.ravel().tolist())
        return InferenceResponse(model_name="m", outputs=[output])
