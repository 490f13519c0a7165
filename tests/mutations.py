"""Small mistakes in the numeric core: what :mod:`mutants` makes of the code, and the tests that have to notice.

An entry is stale where its code is no longer there, word for word and once; ``tests/test_mutations.py`` says so.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """A mistake in a file."""

    file: str
    tests: str  # files or test functions in tests/, separated by spaces
    before: str
    after: str
    equivalent: str = ""  # why no test can notice it


# fmt: off
CHANGES: list[tuple[str, str, list[tuple[str, ...]]]] = [  # file, tests, and (before, after, why it is equivalent)
    ("training/module.py", "test_step_by_hand.py", [
        ("loss = self.caption_weight * losses.caption", "loss = losses.caption"),
        ("loss = loss + self.prompt_weight * losses.prompts", "loss = loss + losses.prompts"),
        ("prompts = prompts.unflatten(0, (len(image), -1))",
         "prompts = prompts.unflatten(0, (-1, len(image))).transpose(0, 1)"),
        ("self.prompt_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))",
         "self.prompt_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.1)))"),
        ("self.prompt_logit_scale.exp().clamp(max=LARGEST_SCALE)", "self.prompt_logit_scale.exp()"),
        ("            self.prompt_scale,\n            batch.concepts",
         "            self.model.scale,\n            batch.concepts"),
        ("batch.concepts,\n            rank=self.global_rank,\n            world_size=self.trainer.world_size",
         "batch.concepts,\n            rank=self.global_rank,\n            world_size=1"),
        ("batch.concepts,\n            rank=self.global_rank", "batch.concepts,\n            rank=0"),
    ]),
    ("training/zero_shot.py", "test_step_by_hand.py", [
        ("groups = parameter_groups(self, self.optimizer.weight_decay)", "groups = parameter_groups(self, 0.05)"),
        ("apply_settings(schedule, groups, peak, self.optimizer.betas)",
         "apply_settings(schedule, groups, peak, (0.9, 0.999))"),
        ("learning_rate(step, total, warmup, peak, final) / peak",
         "learning_rate(step, total, warmup, peak, peak) / peak"),
        ("peak = scaled(config.rate, global_batch, config.reference_batch)", "peak = config.rate"),
        ("return peak, scaled(config.final_rate, global_batch, config.reference_batch)", "return peak, config.final_rate"),
        ("seed_step(self.seed, batches_begun(self.trainer), self.global_rank)",
         "seed_step(self.seed, batches_begun(self.trainer), 0)"),
        ("seed_step(self.seed, batches_begun(self.trainer), self.global_rank)",
         "seed_step(0, batches_begun(self.trainer), self.global_rank)"),
        ("seed_step(self.seed, batches_begun(self.trainer), self.global_rank)",
         "seed_step(self.seed, 0, self.global_rank)"),
    ]),
    ("training/zero_shot.py", "test_training.py::test_options_of_training_are_used", [
        ("self.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches",
         "self.data.batch_size * trainer.world_size"),
    ]),
    ("training/zero_shot.py", "test_training.py::test_warm_up_keeps_its_share_of_a_shorter_run", [
        ("round(total * min(warmup_epochs / max_epochs, 1.0))", "round(total * warmup_epochs / max_epochs)"),
        ("return round(warmup_epochs * epoch_steps)", "return round(warmup_epochs)"),
    ]),
    ("segmenters/groupvit.py", "test_step_by_hand.py", [
        ("self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))",
         "self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.1)))"),
        ("return self.logit_scale.exp().clamp(max=LARGEST_SCALE)", "return self.logit_scale.exp()"),
        ("LARGEST_SCALE = 100.0", "LARGEST_SCALE = 110.0"),
        ("nn.init.normal_(self.text.positions, std=0.01)", "nn.init.normal_(self.text.positions, std=0.02)"),
        ("isinstance(module, nn.Linear | nn.Embedding)", "isinstance(module, nn.Linear)"),
        ("nn.init.trunc_normal_(module.weight, std=0.02)", "nn.init.trunc_normal_(module.weight, std=0.03)"),
        ("nn.init.trunc_normal_(stage.tokens, std=0.02)", "nn.init.trunc_normal_(stage.tokens, std=0.2)"),
        ("nn.init.trunc_normal_(self.image.positions, std=0.02)",
         "nn.init.trunc_normal_(self.image.positions, std=0.2)"),
        ("nn.init.zeros_(module.bias)", "nn.init.ones_(module.bias)"),
    ]),
    ("segmenters/groupvit.py", "test_groupvit.py", [
        ("hard.sum(2, keepdim=True) + 1", "hard.sum(2, keepdim=True) + 1e-6"),
        (" * x.shape[-1] ** -0.5", ""),
        ("soft = (logits + gumbel_noise(logits)).softmax(1)", "soft = logits.softmax(1)"),
        ("return hard + soft - soft.detach()", "return hard"),
        ("torch.linspace(0, config.drop_path, sum(config.depths))",
         "torch.linspace(config.drop_path, config.drop_path, sum(config.depths))"),
        ("return self.image_projection(segments.mean(1))", "return self.image_projection(segments.amax(1))"),
    ]),
    ("segmenters/transformer.py", "test_groupvit.py", [
        ("return x.add(branch(x), alpha=1 / (1 - rate))", "return x + branch(x)"),
        ("factor = (kept.to(x.dtype) / (1 - rate))", "factor = kept.to(x.dtype)"),
        ("scale = 1 / (1 - rate) if len(kept) else 0.0", "scale = 1.0 if len(kept) else 0.0"),
        ("kept = (torch.rand(len(x)) >= rate)", "kept = (torch.rand(len(x)) > 1 - rate)"),
        ("torch.arange(x.shape[1], device=x.device) <= positions",
         "torch.arange(x.shape[1], device=x.device) < positions"),
        ("torch.sigmoid(1.702 * x)", "torch.sigmoid(1.6 * x)"),
    ]),
    ("training/loss.py", "test_loss.py", [
        ("own = rows[:, None] * each + torch.arange(each, device=rows.device)",
         "own = rows[:, None] + len(images) * torch.arange(each, device=rows.device)"),
        (" + rank * len(own)", ""),
        ("(F.cross_entropy(to_texts, rows) + F.cross_entropy(to_images, rows)) / 2", "F.cross_entropy(to_texts, rows)"),
        ("to_images = scale * texts @ images.T", "to_images = texts @ images.T"),
        ("        dist.all_reduce(summed)\n", ""),
        ("left_out.prompts.scatter(1, own, False)", "left_out.prompts"),
        ("left_out.images.scatter(1, targets[:, None], False)", "left_out.images"),
        (".gather(1, own).mean()) / 2", ".gather(1, own).sum()) / 2"),
        ("prompts = excused(concepts.held, drawn.flatten())", "prompts = excused(concepts.held, drawn.T.flatten())"),
    ]),
    ("training/negatives.py", "test_loss.py", [
        (" & (held != NONE)", ""),
    ]),
    ("training/optimizer.py", "test_optimizer.py test_step_by_hand.py", [
        ("{\"params\": kept, \"weight_decay\": 0.0}", "{\"params\": kept, \"weight_decay\": weight_decay}"),
        ("peak * (step + 1) / (warmup + 1)", "peak * (step + 1) / warmup"),
        ("(1 + math.cos(math.pi * progress)) / 2", "(1 - progress)"),
        ("return rate * global_batch / reference", "return rate"),
        ("min((step - warmup) / max(total - warmup, 1), 1.0)", "(step - warmup) / max(total - warmup, 1)"),
        ("lr=lr, betas=betas, fused", "lr=lr, betas=(0.9, 0.999), fused"),
    ]),
    ("training/stream.py", "test_epochs.py", [
        ("if position == span.last:", "if position == span.last + 1:"),
        ("if position >= span.first:", "if position > span.first:"),
        ("                yield from left_out\n                yield self", "                yield self"),
        ("            left_out.clear()\n", ""),
        ("        yield from left_out\n\n    def _draw", "\n    def _draw"),
        ("random.Random(f\"{self.seed} {epoch} {reader}\")", "random.Random(f\"{epoch} {reader}\")"),
        ("random.Random(f\"{self.seed} {epoch} {reader}\")", "random.Random(f\"{self.seed} {reader}\")"),
        ("random.Random(f\"{self.seed} {epoch} {reader}\")", "random.Random(f\"{self.seed} {epoch}\")"),
        ("archives.draw(sampler, self.seed, epoch)", "archives.draw(sampler, self.seed, 0)"),
        ("archives.draw(sampler, self.seed, epoch)", "archives.draw(sampler, 0, epoch)"),
        ("seeds([pair.key], self.seed, epoch)", "seeds([pair.key], self.seed, 0)"),
        ("seeds([pair.key], self.seed, epoch)", "seeds([pair.key], 0, epoch)"),
        ("seed = int(drawn.draw.seeds[pair.row])", "seed = pair.row"),
        ("prompts = drawn.draw.prompts[pair.row]", "prompts = drawn.draw.prompts[0]"),
    ]),
    ("training/stream.py", "test_datamodule.py", [
        ("epoch >= self.sampler_epochs", "epoch > self.sampler_epochs"),
        ("archive.read(shard.source.name, sampler.method.of_caption)", "archive.read(shard.source.name, False)"),
    ]),
    ("training/stream.py", "test_training_data.py", [
        ("rng.randint(0, len(buffer) - 1)", "rng.randint(0, max(len(buffer) - 2, 0))"),
        ("ids = concept_ids(archives.names)[draw.concepts]", "ids = concept_ids(archives.names)[draw.concepts - 1]"),
    ]),
    ("training/plan.py", "test_epochs.py test_plan.py", [
        ("default_rng([self.seed, epoch])", "default_rng([epoch])"),
        ("default_rng([self.seed, epoch])", "default_rng([self.seed])"),
        ("(rank * self.workers + worker) * part", "worker * part"),
        ("+ (part < done % self.workers)", "+ (part <= done % self.workers)"),
    ]),
    ("training/batches.py", "test_epochs.py test_step_by_hand.py", [
        ("reader=self.rank * self.plan.workers + part", "reader=part"),
        ("reader=self.rank * self.plan.workers + part", "reader=self.rank + part"),
        ("self.plan.spans(self.epoch, self.rank, part)", "self.plan.spans(self.epoch, 0, part)"),
        ("self.stream.read(spans, self.epoch,", "self.stream.read(spans, 0,"),
        ("if good >= position), max(pixels))", "if good >= position), min(pixels))"),
        ("if good >= position)", "if good > position)"),
        ("used = [samples[position] for position in chosen]", "used = list(samples)"),
        ("torch.stack([pixels[position] for position in chosen])",
         "torch.stack([pixels[max(pixels)] for position in chosen])"),
        ("seed_everything(sample.seed)", "seed_everything(0)"),
        ("[prompt for sample in used for prompt in sample.prompts]",
         "[prompt for row in zip(*(sample.prompts for sample in used), strict=True) for prompt in row]"),
    ]),
    ("training/batches.py", "test_training_data.py", [
        ("epoch=0 if self._repeated else epoch", "epoch=0"),
    ]),
    ("training/augmentation.py", "test_epochs.py test_datamodule.py", [
        ("    random.seed(seed)\n", ""),
        ("    np.random.seed(seed & 0xFFFFFFFF)\n", ""),
        ("    torch.default_generator.manual_seed(seed)\n", ""),
        ("hflip=self.flip", "hflip=0.5"),
        ("scale=(self.smallest_crop, self.largest_crop)", "scale=(0.08, self.largest_crop)"),
        ("scale=(self.smallest_crop, self.largest_crop)", "scale=(self.smallest_crop, 1.0)"),
        ("re_prob=self.erasing", "re_prob=0.25"),
        ("color_jitter=self.color_jitter", "color_jitter=0.4"),
    ]),
    ("curation/archive/sampling.py", "test_sampling.py", [
        ("TEMPLATE_STREAM = 1 << 20", "TEMPLATE_STREAM = 0"),
        ("TEMPLATE_STREAM = 1 << 20", "TEMPLATE_STREAM = 1"),
        ("uniform(seeds[:, None], TEMPLATE_STREAM, counter)", "uniform(seeds[:, None], TEMPLATE_STREAM, 0 * counter)"),
        ("mix(mix(np.array(seed, np.uint64)) ^ np.uint64(epoch))", "mix(mix(np.array(seed, np.uint64)))"),
        ("mix(mix(np.array(seed, np.uint64)) ^ np.uint64(epoch))", "mix(np.array(epoch, np.uint64))"),
        ("within = score / archives.temperature", "within = score"),
        ("between = mean / archives.temperature", "between = mean"),
        ("archives.gumbel(2 * index + 1)", "archives.gumbel(2 * index)"),
        ("np.lexsort((-between, rank, owners))", "np.lexsort((rank, -between, owners))"),
        ("archives.score / archives.temperature + archives.gumbel(2 * index)",
         "archives.score / archives.temperature + archives.gumbel(0)"),
        ("np.minimum(unit(bits) + 2.0**-54, LARGEST)", "unit(bits) + 2.0**-54", "differs for one number in 2^53"),
    ]),
    ("curation/expansion.py", "test_expansion_and_ranking.py", [
        ("np.where(own, 0, np.maximum(mentions.similarities[mentioned], FLOOR))",
         "np.maximum(mentions.similarities[mentioned], FLOOR)"),
        ("reference_count=support - np.add.reduceat(own, starts, dtype=np.int64)", "reference_count=support"),
        ("np.maximum(mentions.similarities[mentioned], FLOOR)", "mentions.similarities[mentioned]"),
        ("np.argsort(-cosines, axis=1, kind=\"stable\")", "np.argsort(-cosines, axis=1, kind=\"stable\")[:, ::-1]"),
    ]),
    ("curation/ranking.py", "test_expansion_and_ranking.py", [
        ("largest = np.maximum(similarity, expansion.reference_maximum)",
         "largest = np.maximum(expansion.reference_maximum, FLOOR)"),
        ("np.lexsort((concepts.values, -score, concepts.owners))",
         "np.lexsort((-concepts.values, -score, concepts.owners))"),
        ("times = 1 + (expansion.anchor_mentions if anchor_twice else 0)", "times = 1 + expansion.anchor_mentions"),
        ("return np.maximum(pair_similarities(images, texts, concepts), FLOOR)",
         "return pair_similarities(images, texts, concepts)"),
    ]),
    ("curation/clustering.py", "test_clustering.py test_curator.py", [
        ("clusters = (size + 1) // 2", "clusters = size // 2"),
        ("np.full(len(rows), seed, np.uint64)", "np.full(len(rows), 0, np.uint64)"),
        ("uniforms(concepts[batch], RESTARTS * clusters, seed)", "uniforms(concepts[batch], RESTARTS * clusters, 0)"),
        ("own_distance * own_count / np.maximum(own_count - 1, 1)", "own_distance"),
        ("by_id = np.argsort(concepts[positions], axis=1)", "by_id = np.argsort(positions, axis=1)"),
        ("better = cost[rows, cluster, point] < -1e-6", "better = cost[rows, cluster, point] < -1e-1"),
    ]),
    ("curation/run/curator.py", "test_curator.py", [
        ("clustering.cluster_archives(concepts, texts, config.seed)", "clustering.cluster_archives(concepts, texts)"),
        ("self.method.retrieves == \"text\" and config.include_anchor", "self.method.retrieves == \"text\""),
        ("self.method.retrieves == \"text\" and config.include_anchor", "config.include_anchor"),
        ("self.method.retrieves == \"text\" and config.include_anchor", "False"),
    ]),
    ("curation/index/neighbours.py", "test_index.py test_curator.py", [
        ("neighbors + (not include_anchor)", "neighbors"),
        ("rank[is_anchor] = -np.inf if include_anchor else np.inf", "rank[is_anchor] = np.inf"),
        ("cosines[missing, -1] = 1.0", "cosines[missing, -1] = 0.0"),
    ]),
    ("curation/index/duplicates.py", "test_groups.py", [
        ("groups[is_later | own] = -1", "groups[is_later] = -1"),
        ("groups[is_later | own] = -1", "groups[own] = -1"),
        ("(ids == anchors[:, None]), ids, groups)", "(ids == anchors[:, None]), chosen[ids], groups)"),
        ("chosen[nodes[same]] = first[same]", "chosen[nodes[members]] = first[members]"),
        ("pairs = pairs[np.isin(pairs, rest).all(axis=1)]", "pairs = pairs[np.isin(pairs, rest).any(axis=1)][:0]"),
    ]),
    ("curation/thumbnails.py", "test_groups.py", [
        ("either.reshape(2, -1).max(axis=0)", "either.reshape(2, -1)[0]"),
        ("STEP, MOST = 0.02, 0.1", "STEP, MOST = 0.02, 0.0"),
        ("luminance * (2 * covariance + C2)", "(2 * covariance + C2)"),
    ]),
    ("curation/index/search.py", "test_search.py", [
        ("if count < 1 << 15 else numbers", "if count < 1 << 17 else numbers"),
        ("if count < 1 << 15 else numbers",
         "if count <= 1 << 15 else numbers", "of 2^15 lists the largest number is 2^15 - 1, which 16 bits hold"),
        ("yield from itertools.pairwise(bounds)", "yield from itertools.pairwise(bounds[1:])"),
        ("least[unbounded] = lowest - margin[unbounded] - last_rounding", "least[unbounded] = lowest + margin[unbounded]"),
        ("floor[rows] = least", "floor[rows] = least + 0.05"),
        ("return rows[row], column, near - far, near + far", "return rows[row], column, near, near"),
    ]),
    ("curation/index/graph.py", "test_graph.py", [
        ("near = cosines[row, column] >= floor[ids[row, column] - first]",
         "near = cosines[row, column] > floor[ids[row, column] - first]"),
        ("once[1:] = (np.diff(rows) != 0) | (np.diff(ids) != 0)", "once[1:] = np.diff(rows) != 0"),
        ("edges.append((ids[row, column] - first, start + row, cosines[row, column]))",
         "edges.append((ids[row, column] - first, row, cosines[row, column]))"),
    ]),
    ("curation/run/stages/mentions.py",
         "test_ablations.py::test_another_runs_index_is_read_with_this_runs_own_vocabulary", [
        ("matcher = vocabulary.matcher() if source is not run else None", "matcher = None"),
    ]),
    ("curation/visualness.py", "test_visualness.py", [
        ("for start in range(0, len(sample), AT_ONCE):", "for start in range(0, min(len(sample), AT_ONCE), AT_ONCE):"),
        ("sums[:, 1, 1] += background.sum(0)", "sums[:, 1, 1] = background.sum(0)"),
        ("(squares - total**2 / count) / (count - 1)", "(squares - total**2 / count) / count"),
        ("others = sums[:, 1] - sums[:, 2]", "others = sums[:, 1]"),
    ]),
    ("evaluation/labels.py", "test_benchmarks.py", [
        ("67, 68, 70, 82, 90)", "67, 68, 70, 83, 90)"),
        ("(labels == 0) | (labels == ignore)", "labels == 0"),
        ("COCO_STUFF = tuple(range(91, 182))", "COCO_STUFF = tuple(range(91, 183))"),
        ("*range(19, 29), 31, 32, 33", "*range(19, 29), 30, 32, 33"),
    ]),
    ("evaluation/metric.py", "test_metric.py", [
        ("union = counts.sum(0) + counts.sum(1) - hit", "union = counts.sum(0) + counts.sum(1)"),
        ("labels * classes + predictions", "predictions * classes + labels"),
        ("iou.nanmean().item()", "iou.nan_to_num().mean().item()"),
    ]),
    ("evaluation/inference.py", "test_inference.py", [
        ("scores = logits.softmax(-1) * (logits + mask[:, None]).softmax(-1)",
         "scores = (logits + mask[:, None]).softmax(-1)"),
        ("CANDIDATES = 5", "CANDIDATES = 4"),
        ("highest.clamp(max=classes.threshold)", "highest.clamp(min=classes.threshold)"),
    ]),
    ("evaluation/windows.py", "test_inference.py", [
        ("tables.append(table / len(covering))", "tables.append(table)"),
        ("+ 0.5) * (length / target) - 0.5", "+ 0.5) * (length / target)"),
    ]),
    ("segmenters/place_groups.py", "test_place_groups.py", [
        ("F.normalize(places - places.mean(1, keepdim=True), dim=-1)", "places"),
        ("ROUNDS = 2", "ROUNDS = 1"),
        ("* centres @ apart.mT).softmax(1)", "* centres @ apart.mT).softmax(2)"),
        ("weights = shares / shares.sum(-1, keepdim=True)", "weights = shares / shares.sum(1, keepdim=True)"),
        ("(flat + shares.mT @ groups)", "(shares.mT @ groups)"),
    ]),
    ("segmenters/readings.py", "test_dense.py", [
        ("(by_query + by_key) @ value", "(by_query + by_key) / 2 @ value"),
        ("(extra, 0, extra, 0)", "(0, extra, 0, extra)"),
        ("(2 * SPREAD**2)", "SPREAD**2"),
        ("key.shape[-1] ** -0.5 * key", "key"),
    ]),
    ("segmenters/towers.py", "test_dense.py test_dense_training.py", [
        ("x = x + mixed\n    return x +", "return x +"),
        ("if not reading.whole_block:", "if reading.whole_block:"),
        ("places = positions[1:].T", "places = positions[:-1].T"),
        ("(margin // 2, margin - margin // 2) * 2", "(margin - margin // 2, margin // 2) * 2"),
        ("skipped = [] if READINGS[self.reading].whole_block else", "skipped = [] if True else"),
    ]),
    ("training/places.py", "test_dense_training.py", [
        ("(sharpness * logits).logsumexp(-1)", "logits.logsumexp(-1)"),
        (" - math.log(logits.shape[-1])) / sharpness", ") / sharpness"),
        ("max(1, round(logits.shape[-1] / max(sharpness, 1.0)))", "1"),
        ("return some - none", "return some"),
        ("unknown & ~positive", "unknown"),
        ("shares.masked_fill(~possible[:, :, None], -torch.inf)", "shares"),
        ("torch.where(said[:, None], inside, 0.0).sum() / (said.sum()",
         "torch.where(said[:, None], inside, 0.0).sum() / (len(said)"),
    ]),
    ("training/dense.py", "test_dense_training.py", [
        ("order = torch.rand(len(ids), device=ids.device).masked_fill(first, 2.0)",
         "order = torch.rand(len(ids), device=ids.device)"),
        ("max(count, int(first.sum()))", "count"),
        ("for parameter in model.tower.unused():", "for parameter in ():"),
        ("        model.grouping.requires_grad_(True)\n", "        pass\n"),
        ("model.logit_scale.requires_grad_(learn_scale)", "model.logit_scale.requires_grad_(True)"),
    ]),
    ("training/labels.py", "test_dense_training.py", [
        ("np.union1d(mentioned, drawn)", "drawn"),
        ("both[both != NONE]", "both"),
        ("[sample.held for sample in drawn.concepts] if drawn.concepts",
         "[sample.drawn for sample in drawn.concepts] if drawn.concepts"),
    ]),
    ("experiments/distil_places.py", "test_distil_places.py", [
        ("(embeddings - self.mean) @ self.axes", "embeddings @ self.axes"),
        ("torch.linalg.svd((names - mean).double()", "torch.linalg.svd(names.double()"),
        ("mixture = torch.einsum(\"bghw,bgc->bchw\", masks, named)",
         "mixture = torch.einsum(\"bghw,bgc->bchw\", masks, named).softmax(1)"),
    ]),
    ("evaluation/places.py", "test_places.py", [
        ("background = best < highest.clamp(max=threshold)", "background = best < threshold"),
        ("total /= coverage", "total /= 1"),
        ("labels = torch.where(better, highest.indices + start, labels)",
         "labels = torch.where(better, highest.indices, labels)"),
    ]),
]
# fmt: on

MUTATIONS = [Mutation(file, tests, *change) for file, tests, changes in CHANGES for change in changes]
