"""Published figures stand beside the rows they are of."""

from clip_vl.reports.published_probes import references


def test_the_table_on_disk_joins_the_papers_figures(real_data):
    found = references(real_data / "probes")
    assert found["sugarcrepe", "swap_obj", "accuracy"]["NegCLIP T"] == 75.918
    assert found["sugarcrepe", "swap_obj", "accuracy"]["ViT-B/32 P"] == 61.38
    assert found["crepe_productivity", "atom micro", "R@1"]["ViT-B/32 T"] == 18.963
    assert found["svo_pairwise", "verb", "pairwise accuracy"]["RN50 T"] == 79.354
    assert found["vlchecklist_itc", "Object/Size/small", "accuracy"]["NegCLIP T"] == 78.587
    assert found["winoground", "all", "group"] == {
        "human F": 85.5, "ViT-B/32 F": 8.0, "ViT-B/32 T": 8.75, "RN50 T": 8.5, "ViT-L/14 T": 8.5, "NegCLIP T": 8.0,
    }  # fmt: skip
    assert found["coco_order", "mean over seeds", "precision@1"]["NegCLIP T"] == 82.559
    assert found["vg_relation", "macro", "accuracy"]["RN50 T"] == 63.622


def test_without_the_table_the_papers_remain():
    assert references()["winoground", "all", "text"] == {"human F": 89.5, "ViT-B/32 F": 30.75}
