"""k-means, by faiss, or by scikit-learn where faiss is not installed."""


def k_means(features, k, iterations, redo, seed):
    """(labels (N,), centroids (k, D)) of contiguous float32 (N, D): Euclidean, the best of `redo` starts."""
    try:
        import faiss
    except ImportError:
        from sklearn.cluster import KMeans

        found = KMeans(k, n_init=redo, max_iter=iterations, random_state=seed).fit(features)
        return found.labels_, found.cluster_centers_
    N, D = features.shape
    sizes = {"min_points_per_centroid": 1, "max_points_per_centroid": N}  # all points, and no warning that they are few
    kmeans = faiss.Kmeans(D, k, niter=iterations, nredo=redo, seed=seed, **sizes)
    kmeans.train(features)
    return kmeans.index.search(features, 1)[1][:, 0], kmeans.centroids
