"""What the commands say of themselves."""

from __future__ import annotations

PRETRAIN_HELP = """\
Pretrain a masked image model. With data=DIR alone, sizes are chosen by looking at the images, a
tokenizer is fitted and cached, and the run folder gets metrics, checkpoints, report.html and
export/ (which timm.create_model("local-dir:RUN/export", pretrained=True) opens).
The same command goes on from the last checkpoint where there is one.

  clustermim pretrain data=photos/
  clustermim pretrain data=photos/ dry_run=true      (five steps: speed, memory, eta, crops)
  clustermim pretrain data=photos/ steps=20          (a look: 20 updates in place of epochs=)
  clustermim pretrain digits_demo out=runs/digits
  clustermim pretrain cifar10_vit_tiny data=cifar10/ method=mae epochs=20 optim.blr=1e-3
  clustermim pretrain data=photos/ method=ccvit backbone=beit_base_patch16_224
"""
FIT_HELP = """\
Fit the k-means tokenizer that `pretrain` with the same settings would fit, and save it.

  clustermim tokenizer fit data=photos/ num_clusters=100 patch_size=16 out=tok.safetensors
  clustermim pretrain data=photos/ tokenizer=tok.safetensors
  clustermim tokenizer fit data=photos/ num_clusters=25,50,100 out=codebooks/pixel{}.safetensors

With kind=feature the features of a frozen network are clustered instead of pixels. model= is a
timm name (vit_small_patch16_224.dino where none is given), a run folder or a folder in timm's
format; weights=FILE a checkpoint for it (.safetensors, or .pth of tensors in the names of timm,
DINO, DeiT, MAE, BEiT).

  clustermim tokenizer fit data=photos/ kind=feature num_clusters=100
  clustermim tokenizer fit data=photos/ kind=feature model=runs/clustermim_photos layer=8

Its settings: metric=euclidean|cosine|dot algorithm=minibatch|lloyd|clustermim max_iter= init=
tol= tokenizer.batch_size= reassignment_ratio= max_images= images_per_class=, per_patch_norm=yes
normalize=no (pixels), layer=-1 apply_norm=yes precision=float32|bfloat16
keep_features=no (features). Images are resized for a network whose patches are not of patch_size.
"""
SHOW_HELP = """\
Print a tokenizer's settings and draw its codebook: centroids of pixels, and for features the patch
nearest to each centroid. With data=DIR also how often the tokens occur there, and token maps.

  clustermim tokenizer show tok.safetensors data=photos/ out=tok.png
"""
CHOICE_HELP = {
    "tcas": """\
Score tokenizers against class labels in one pass over the images (TCAS, lower is better): its
variants, normalised mutual information, purity, perplexity and dead tokens, as a ranked table,
OUT.json and OUT.png. Fit some tokenizers, look here, and pretrain with the best.

  clustermim tokenizer tcas data=photos/ tokenizers=pixel50.safetensors,pixel200.safetensors
  clustermim tokenizer tcas data=photos/ tokenizers=codebooks/ images=0 variant=A

Settings: data= tokenizers=FILE,FILE or a folder; out=tcas variant=default|A|B|C images=10000
(0: all); of the variant rows=l2|l1|none columns=none|l1|l2 pairs=different|all, and of C
token_weight=frequency|uniform balance_classes=no; """,
    "rank": """\
Rank tokenizers without labels: how many patches keep their token under noise, blur, jitter and a
shift by one pixel (beyond chance), how clear the nearest centroid is, how many tokens are used.

  clustermim tokenizer rank data=photos/ tokenizers=codebooks/

Settings: data= tokenizers=FILE,FILE or a folder; out=rank images=1000 (0: all) seed=0 """,
}
CHOICE_TEXT = """\
img_size=HxW eval_crop= split=train|test|all batch_size= device=auto
"""
COMPARE_HELP = """\
Write one offline page on several run folders: a table of accuracies with intervals and budgets
beside random initialisation, loss curves, settings that differ, and the pictures of their reports.
It reads what `evaluate` and `report` wrote into the folders; what is missing is shown with the
command that measures it.

  clustermim compare runs/clustermim runs/mae runs/a2mim out=comparison.html
"""
BENCH_HELP = """\
Exact assignment (or one Lloyd iteration) beside torch, faiss, scikit-learn and its Intel build:
time and wrong ids, on made-up rows of your shape or on your own .npy. Missing peers are named with
the way to install them.

  clustermim bench nearest_centroid n=20000 d=768 k=1000 dtype=float32
  clustermim bench nearest_centroid file=x.npy centroids=c.npy peers=all json=result.json
  clustermim bench kmeans file=x.npy k=512

Settings: n= d= k= file= centroids= peers=all|none|KEY,KEY rounds= threads= seed= json=; and dtype=
of nearest_centroid.
"""
EVALUATE_HELP = {
    "knn": "k nearest neighbours on frozen features (cosine, k=20, temperature=0.07)",
    "linear": "logistic regression on frozen features, its penalty chosen on training images",
    "attentive": "probes on attention-pooled tokens (AbMILP) beside [cls] and mean",
    "finetune": "the whole encoder trained on labels, beside its random initialisation",
}
EVALUATE_NOTES = {
    "attentive": """\
The encoder runs once; its tokens are kept as float16 (memory_gib=8 at most, or on_disk=yes).
Learning rates are swept side by side and chosen on held-out training images; the test images are
read once. seeds=3 repeats it all and gives mean and spread. pool= takes any of abmilp, map, cls,
mean, centreN, attn_mean, attn_lowest_entropy, attn_centreN, teacher (of teacher=RUN or timm name),
with commas. epochs=90 are the paper's; 20 are a quick look.

  clustermim evaluate attentive runs/clustermim_photos seeds=3
  clustermim evaluate attentive vit_small_patch16_224.dino data=photos/ pool=abmilp,map,cls

AbMILP's switches, the paper's first: content=patch|all attention=none|map|both depth=1
activation=relu|tanh|gelu condition=none|position; tokens: layer=-1 norm=no.

""",
    "finetune": """\
MAE's settings without random augmentation, erasing and drop path: AdamW, layer decay, mixup,
cutmix, label smoothing; ema_decay=0.999 evaluates averaged weights. epochs=100 are MAE's: on a CPU
give a few. The test images are read once, after the last epoch; of several learning_rates= the best
on held-out training images is taken. baseline=no leaves the random initialisation out.

  clustermim evaluate finetune runs/clustermim_photos epochs=10 shots=10% seeds=3

""",
}
EVALUATE_TEXT = """\
Random initialisation and raw pixels are always evaluated beside the pretrained encoder. Labels
come from class sub-folders: data=DIR with DIR/train/<class>/ and DIR/test/<class>/, or DIR/<class>/
(a fifth of each class is then the test set). Without data=, the run's own images are used.
RUN is a run folder, a folder written by `clustermim export`, or a timm model name; with
weights=FILE, a checkpoint of timm, DINO, MAE, BEiT, ... for that name (model=NAME is RUN too).

shots=10% (or 5: of each class) leaves few training images; seeds=3 repeats, for mean and spread.

Settings: data= checkpoint=last weights= pool=mean|cls batch_size=256 device=auto cache=yes
out=FILE"""
