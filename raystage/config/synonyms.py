"""Names that other trainers have for the keys of a schedule, for "did you mean"."""

from __future__ import annotations

# By key of a schedule (those of a stage without 'stages'): a hint on its value, and its names elsewhere.
_BY_KEY: dict[str, tuple[str, str]] = {
    "name": ("", "run_name experiment_name experiment job_name"),
    "seed": ("", "random_seed rng_seed manual_seed data_seed"),
    "data.path": ("files or folders, with data.source: text, jsonl, parquet, ...",
                  "dataset datasets dataset_name dataset_path dataset_dir data_path data_dir data_files train_file "
                  "train_files train_data train_path train_dataset text_files corpus"),
    "data.tokenizer": ("bytes, a folder or a hub name",
                       "tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_model tokenizer_type"),
    "data.field": ("of a row", "column text_column text_field text_key text_column_name content_column"),
    "data.window.mask": ("document keeps the documents of a window apart",
                         "reset_attention_mask reset_position_ids eod_mask_loss document_mask document_masking "
                         "doc_mask intra_document_masking"),
    "data.subset": ("of a data set", "config_name dataset_config dataset_config_name"),
    "data.split": ("of a data set", "train_split dataset_split"),
    "data.end_token": ("", "eos_token eot_token eos_token_id eod_token"),
    "data.validation_fraction": ("a share of the documents",
                                 "val_fraction val_split valid_fraction eval_split eval_fraction "
                                 "test_size val_ratio validation_ratio"),
    "model.family": ("such as llama", "model_type architecture architectures arch"),
    "model.num_layers": ("", "n_layer n_layers num_hidden_layers num_layer layers depth num_blocks n_blocks"),
    "model.hidden_size": ("", "n_embd n_embed d_model embed_dim embedding_dim emb_dim embedding_size hidden_dim dim "
                          "model_dim d_embed width"),
    "model.num_heads": ("", "n_head n_heads num_attention_heads num_head heads attention_heads"),
    "model.num_kv_heads": ("", "num_key_value_heads n_kv_head n_kv_heads num_query_groups kv_heads"),
    "model.head_size": ("", "head_dim d_head kv_channels"),
    "model.ffn_size": ("", "intermediate_size ffn_dim ffn_hidden_size ffn_hidden_dim d_ff ff_dim mlp_dim mlp_size "
                       "n_inner feed_forward_size"),
    "model.context_length": ("in tokens", "seq_len seq_length sequence_length max_seq_len max_seq_length block_size "
                             "max_length n_ctx n_positions max_position_embeddings context_size context_len "
                             "context_window ctx_len model_max_length"),
    "model.tied_embeddings": ("", "tie_word_embeddings tie_embeddings tied_word_embeddings weight_tying tie_weights"),
    "model.norm_eps": ("", "rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon"),
    "model.sliding_window": ("in tokens", "sliding_window_size local_attention attention_window"),
    "model.num_experts": ("", "num_local_experts n_experts n_routed_experts moe_num_experts"),
    "model.experts_per_token": ("", "num_experts_per_tok top_k moe_top_k moe_router_topk"),
    "model.rope_theta": ("", "rope_base rotary_base rotary_emb_base rope_freq_base base_freq"),
    "model.rope_scaling.kind": ("yarn, linear, llama3 or none", "rope_type rope_scaling_type"),
    "model.rope_scaling.factor": ("", "rope_scaling_factor rope_factor"),
    "model.rope_scaling.original_context_length": ("in tokens", "original_max_position_embeddings original_max_len"),
    "freeze.parameters": ("patterns of names", "frozen_parameters freeze_parameters freeze_modules frozen_modules"),
    "adapter": ("such as {lora: {rank: 16}}", "lora peft peft_config lora_config qlora adapters"),
    "adapter.lora.rank": ("", "lora_r lora_rank"),
    "adapter.lora.alpha": ("", "lora_alpha"),
    "adapter.lora.dropout": ("", "lora_dropout"),
    "adapter.lora.on": ("names of modules", "target_modules lora_target_modules target_parameters"),
    "adapter.lora.train": ("patterns of names", "modules_to_save trainable_modules"),
    "thaw": ("such as {from: top, every: 200K}", "unfreeze gradual_unfreezing unfreezing"),
    "training.workers": ("how many, with training.gpus_per_worker: 1 on GPUs",
                         "num_gpus n_gpus n_gpu gpus ngpus num_workers world_size nproc_per_node num_processes"),
    "training.zero_stage": ("0 to 3", "zero zero_level"),
    "training.precision": ("fp32 or bf16", "fp16 bf16 dtype torch_dtype mixed_precision amp half"),
    "training.global_batch_tokens": (
        "the tokens of one step over all workers: sequences times context_length; global_batch_samples where progress "
        "is counted in samples, as with classification and denoising",
        "batch_size global_batch_size train_batch_size train_batch total_batch_size batch_tokens tokens_per_batch "
        "tokens_per_step gradient_accumulation_steps grad_accum accumulate_grad_batches grad_accum_steps"),
    "training.micro_batch_size": ("sequences that a worker takes at a time",
                                  "per_device_train_batch_size per_device_batch_size train_micro_batch_size_per_gpu "
                                  "micro_batch device_batch_size batch_size_per_gpu"),
    "training.gradient_clipping": ("a norm", "max_grad_norm grad_clip clip_grad clip_grad_norm gradient_clip_val "
                                   "gradient_clip grad_norm_clip clip"),
    "training.activation_checkpointing": ("true, false or selective",
                                          "gradient_checkpointing recompute activation_recompute "
                                          "checkpoint_activations remat"),
    "training.cross_entropy": ("whole, chunked or liger", "fused_cross_entropy fused_loss use_liger_kernel "
                               "fused_linear_cross_entropy liger_fused_linear_cross_entropy chunked_cross_entropy "
                               "cut_cross_entropy"),
    "training.optimizer.name": ("adamw, adam, sgd or muon", "optim optimizer_type optimizer_name"),
    "training.optimizer.lr": ("", "learning_rate learningrate max_lr max_learning_rate base_lr peak_lr"),
    "training.optimizer.betas": ("such as [0.9, 0.95]", "adam_beta1 adam_beta2 beta1 beta2 adam_betas"),
    "training.optimizer.eps": ("", "adam_epsilon adam_eps epsilon"),
    "training.optimizer.weight_decay": ("", "wd l2 adam_weight_decay"),
    "training.optimizer.lr_by_depth": ("such as 0.9", "layer_decay layerwise_lr_decay layer_lr_decay llrd"),
    "training.lr_schedule.kind": ("wsd, cosine, linear, 1-sqrt, constant or piecewise",
                                  "lr_scheduler lr_scheduler_type scheduler lr_decay_style decay_lr scheduler_type "
                                  "lr_schedule_type"),
    "training.lr_schedule.warmup": ("a share below 1, or tokens: steps times global_batch_tokens",
                                    "warmup_steps num_warmup_steps warmup_ratio warmup_iters warmup_tokens "
                                    "lr_warmup_steps lr_warmup_iters warmup_fraction"),
    "training.lr_schedule.decay": ("a share below 1, or tokens", "decay_steps lr_decay_iters lr_decay_steps cooldown "
                                   "decay_ratio"),
    "training.lr_schedule.decay_shape": ("linear, cosine or 1-sqrt",
                                         "decay_type lr_decay_shape cooldown_type decay_style"),
    "training.lr_schedule.min_lr_ratio": ("a share of lr", "min_lr min_learning_rate lr_min end_lr final_lr"),
    "training.evaluate.every": ("in tokens", "eval_steps eval_interval eval_every evaluation_interval val_interval "
                                "val_check_interval"),
    "training.evaluate.tokens": ("of held-out text", "eval_iters eval_batches eval_tokens limit_val_batches"),
    "training.evaluate.metrics": ("functions such as my.metrics:exact", "compute_metrics metrics"),
    "training.checkpoint.every": ("in tokens", "save_steps save_interval save_every save_freq checkpoint_interval "
                                  "checkpoint_every ckpt_interval"),
    "training.checkpoint.keep_last": ("", "save_total_limit keep_checkpoints max_checkpoints"),
    "training.deepspeed": ("a mapping of its options", "deepspeed_config ds_config zero_optimization deepspeed"),
    "until.steps": ("of a stage", "max_steps num_steps total_steps n_steps train_steps max_iters train_iters "
                    "num_training_steps iterations max_iterations num_iterations"),
    "until.epochs": ("passes over the data", "num_epochs num_train_epochs max_epochs n_epochs"),
    "until.tokens": ("of a stage, such as 400K", "max_tokens train_tokens total_tokens num_tokens n_tokens "
                     "token_budget training_tokens"),
    "init.from": ("a folder, a stage key or a hub name",
                  "model_name_or_path pretrained_model_name_or_path model_name model_path pretrained base_model "
                  "init_from checkpoint_path load_checkpoint resume_from load"),
    "grow.operator": ("such as stack", "growth_operator growth expansion"),
}  # fmt: skip
_OPTIONS = {
    "raystage run --store": "output_dir out_dir save_dir checkpoint_dir ckpt_dir log_dir logging_dir work_dir",
    "raystage run --wandb": "wandb wandb_project use_wandb wandb_log report_to logger",
    "raystage run --address": "master_addr ray_address cluster",
}
_SYNONYMS: dict[str, tuple[str, str]] = {
    **{name: (key, unit) for key, (unit, names) in _BY_KEY.items() for name in names.split()},
    **dict.fromkeys(
        ("num_epochs", "num_train_epochs", "max_epochs", "n_epochs"), ("until.epochs", "passes over the data")
    ),
}
_OPTION_OF = {name: option for option, names in _OPTIONS.items() for name in names.split()}


_FROM_DATA = frozenset(["num_classes", "num_labels", "n_classes", "nb_classes"])


def meant(name: str, known: frozenset[str]) -> str | None:
    """The key of a schedule that a key of other trainers corresponds to, in words, if it is one of `known`."""
    plain = name.lower().replace("-", "_")
    if plain in _OPTION_OF and "stages" in known:
        return f"that is an option of the command: {_OPTION_OF[plain]}"
    if plain in _FROM_DATA:
        return "the number of classes follows from the labels in the data; expected no such key"
    key, unit = _SYNONYMS.get(plain, ("", ""))
    if key not in known:
        return None
    return f"did you mean {key}{f' ({unit})' if unit else ''}?"
