"""The peer of tests.benchmarks.serving: BentoML, torch and Feast put together as their own guides do it."""

import os
from pathlib import Path

import bentoml
import numpy as np
import torch
from feast import FeatureStore

from components.dataset.bundle import Bundle
from components.training.checkpoints import load_model

HOME = Path(os.environ["TANDEM_HOME"])
ITEM_VIEWS = ("item_profile", "item_activity")


@bentoml.service(name="peer", threads=4, workers=int(os.environ["PEER_WORKERS"]))
class Peer:
    """The same checkpoint and the same features, both read as a request needs them."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        bundle = Bundle.open(next(HOME.glob("bentoml/models/*/*/manifest.json")).parent)
        self.model = load_model(next(HOME.glob("runs/*/artifacts/*/finetune*/trained"))).eval()
        self.vocabulary = bundle.vocabulary
        self.store = FeatureStore(fs_yaml_file=HOME / "feast" / "movielens_1m.yaml")
        service = self.store.get_feature_service(str(bundle.manifest["feature_service"]))
        wanted = set(self.vocabulary.columns)
        features = [(view.name, one.name) for view in service.feature_view_projections for one in view.features]
        named = [(view, f"{view}:{feature}") for view, feature in features if feature in wanted]
        self.features = {
            "user_id": [name for view, name in named if view not in ITEM_VIEWS],
            "item_id": [name for view, name in named if view in ITEM_VIEWS],
        }

    @bentoml.api
    def rank(self, user_id: str, item_ids: list[str]) -> dict:
        """Items by falling probability."""
        users = self._read("user_id", [user_id])
        items = self._read("item_id", item_ids)
        columns = {name: values * len(item_ids) for name, values in users.items()} | items
        with torch.inference_mode():
            ids = torch.from_numpy(self.vocabulary.encode(columns))
            scores = torch.sigmoid(self.model(ids)).numpy()
        order = np.argsort(-scores, kind="stable")
        return {"items": [{"item_id": item_ids[i], "probability": float(scores[i])} for i in order]}

    def _read(self, key: str, keys: list[str]) -> dict:
        rows = [{key: value} for value in keys]
        return self.store.get_online_features(features=self.features[key], entity_rows=rows).to_dict()
